"""The random streams that a forward pass can draw from."""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["RandomStreams"]

_WORDS = 624  # of a Mersenne twister's key; with its position, what draws change
_BYTES = 4 * (_WORDS + 1)


class RandomStreams(NamedTuple):
    """The state of Python's, NumPy's and PyTorch's global random streams."""

    python: Any
    numpy: Any
    torch: Tensor
    devices: list[tuple[torch.device, Tensor]]

    @classmethod
    def record(cls, devices: Collection[torch.device]) -> RandomStreams:
        """The streams as they are, those of ``devices`` among them."""
        accelerators = [d for d in devices if d.type not in ("cpu", "meta")]
        states = [(d, torch.get_device_module(d).get_rng_state(d)) for d in accelerators]
        return cls(_PYTHON.record(), _NUMPY.record(), torch.get_rng_state(), states)

    def restore(self) -> None:
        """Draw from here again."""
        _PYTHON.restore(self.python)
        _NUMPY.restore(self.numpy)
        torch.set_rng_state(self.torch)
        for device, state in self.devices:
            torch.get_device_module(device).set_rng_state(state, device)


class _Twister:
    """A global Mersenne twister that is read and written only where somebody drew from it.

    Its state takes 10 µs (Python) or 35 µs (NumPy) to read and as long to write, and a pass rarely draws from it. It is
    known without reading while the generator's memory is what it was when it was read. That misses only a draw of the
    normal number that a generator may hold in reserve; while it holds one, the state is read.

    Args:
        memory: The key and the position, as bytes; None where they cannot be seen.
        read: The state.
        write: Sets it.
        holds_reserve: Whether a state has a normal number in reserve.
    """

    def __init__(
        self,
        memory: Callable[[], bytes | None],
        read: Callable[[], Any],
        write: Callable[[Any], None],
        holds_reserve: Callable[[Any], bool],
    ) -> None:
        self._memory, self._read, self._write, self._holds_reserve = memory, read, write, holds_reserve
        self._known: tuple[bytes, Any] | None = None

    def record(self) -> Any:
        """The state."""
        memory = self._memory()
        if self._known is not None and self._known[0] == memory:
            return self._known[1]
        state = self._read()
        self._known = None if memory is None or self._holds_reserve(state) else (memory, state)
        return state

    def restore(self, state: Any) -> None:
        """Go on from a recorded state."""
        if self._known is None or self._known[1] is not state or self._known[0] != self._memory():
            self._write(state)


def _python_address() -> int | None:
    """Where CPython keeps the global generator's position and key; None if they are not found there."""
    address = id(random._inst) + object.__basicsize__  # pyright: ignore[reportAttributeAccessIssue]
    *key, position = random.getstate()[1]
    if sys.implementation.name != "cpython":
        return None
    found = (ctypes.c_uint32 * (_WORDS + 1)).from_address(address)
    return address if list(found) == [position, *key] else None


_ADDRESS = _python_address()
_PYTHON = _Twister(
    memory=lambda: None if _ADDRESS is None else ctypes.string_at(_ADDRESS, _BYTES),
    read=random.getstate,
    write=random.setstate,
    holds_reserve=lambda state: state[2] is not None,
)


def _numpy_random() -> Any:
    """``numpy.random`` if it was ever loaded; before that nobody can have drawn from it."""
    return sys.modules.get("numpy.random")


def _numpy_memory() -> bytes | None:
    if (numpy_random := _numpy_random()) is None:
        return b""
    generator = numpy_random.mtrand._rand._bit_generator
    is_twister = type(generator).__name__ == "MT19937"  # whose documented ctypes interface is key and position
    return ctypes.string_at(generator.ctypes.state_address, _BYTES) if is_twister else None


def _set_numpy_state(state: Any) -> None:
    if state is not None and (numpy_random := _numpy_random()) is not None:
        numpy_random.set_state(state)


_NUMPY = _Twister(
    memory=_numpy_memory,
    read=lambda: None if (numpy_random := _numpy_random()) is None else numpy_random.get_state(legacy=False),
    write=_set_numpy_state,
    holds_reserve=lambda state: state is not None and bool(state["has_gauss"]),
)
