"""What a method remembers between steps: counters and numbers; vectors go into the base optimizer's state."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from sam_algos.core.objective.stopwatch import unknown
from sam_algos.core.parts import Memory, Parts
from sam_algos.core.tensors import shards
from sam_algos.core.tensors.vector import Vector

__all__ = ["apart", "commit", "fresh", "holds_vectors", "restored"]

_COUNTERS = ("step", "sharp", "nonfinite")


def fresh(parts: Parts) -> dict[str, Any]:
    """What is remembered before the first step: counters, by axis the numbers of the parts, and what steps took."""
    timed = {"seconds": unknown()} if parts.reader("reads_seconds") is not None else {}
    return {**dict.fromkeys(_COUNTERS, 0), **parts.initial(), **timed}


def restored(parts: Parts, state: Mapping[str, Any]) -> dict[str, Any]:
    """What was remembered in ``state``.

    The counters are those of the run, and survive a change of method; what a part remembers is passed over where it
    remembers other things.
    """
    memory = fresh(parts)
    for key, value in memory.items():
        found = state.get(key)
        is_memory = isinstance(found, Mapping) and isinstance(value, Mapping) and found.keys() == value.keys()
        if is_memory or (key in _COUNTERS and type(found) is int):
            memory[key] = copy.deepcopy(found)
    return memory


def holds_vectors(remember: Mapping[str, Memory]) -> bool:
    """Whether any axis has vectors to remember."""
    return any(isinstance(value, Vector) for memory in remember.values() for value in memory.values())


def commit(memory: dict[str, Any], remember: Mapping[str, Memory], stepped: set[int], state: Any) -> None:
    """Remember what the parts of each axis returned.

    Args:
        memory: Takes the numbers.
        remember: By axis.
        stepped: The parameters that the base optimizer stepped, by ``id``; vectors are remembered of these only.
        state: The base optimizer's, which takes the vectors; it has its own entries by now, as it would not create
            them where it found foreign ones.
    """
    for axis, returned in remember.items():
        numbers = {name: value for name, value in returned.items() if not isinstance(value, Vector)}
        memory[axis] = {**memory[axis], **numbers}
        for name in returned.keys() - numbers.keys():
            vector = returned[name]
            for p, value in zip(vector.params, vector.values, strict=True):
                if id(p) in stepped:
                    state[p][name] = shards.wrap_like(value, p)


def apart(memory: Memory, *written: Vector) -> Memory:
    """The same, with vectors that share no memory with gradients, or with what else will be written into."""
    if not any(isinstance(value, Vector) for value in memory.values()):
        return memory
    taken = {value.data_ptr() for vector in written for value in vector.values}
    return {name: _clone_of(value, taken) if isinstance(value, Vector) else value for name, value in memory.items()}


def _clone_of(vector: Vector, taken: set[int]) -> Vector:
    values = [v.clone() if vector.is_gradient or v.data_ptr() in taken else v for v in vector.values]
    return Vector(vector.params, values)
