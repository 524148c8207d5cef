"""How many bytes of memory an optimizer reads and writes, counted operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_OVERWRITING = ("copy_", "zero_", "fill_")  # in place, but what was there is not read


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write while it is active.

    Every operation counts by itself: each tensor that it takes is read once, each that it makes or changes is
    written once. What it finds in a cache counts all the same.

    Attributes:
        bytes: Read and written so far.
        operations: Calls that read or wrote anything.
    """

    def __init__(self) -> None:
        """Nothing has been counted."""
        super().__init__()
        self.bytes = 0
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the operation, and count."""
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        moved = self._read(func, args, kwargs) + self._written(func, args, kwargs, made)
        self.bytes += moved
        self.operations += moved > 0
        return made

    def _read(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> int:
        if _is_view(func):
            return 0
        name = func._schema.name.rpartition("::")[2].removeprefix("_foreach_")
        overwrites = name in _OVERWRITING
        arguments = _arguments(func, args, kwargs)
        read = {id(v): v for a, v in arguments if not (a.is_out or (overwrites and _is_changed(a)))}  # dot(x, x) once
        return sum(map(_bytes, read.values()))

    def _written(self, func: Any, args: tuple, kwargs: dict[str, Any], made: Any) -> int:
        if _is_view(func):
            return 0
        changed = [v for a, v in _arguments(func, args, kwargs) if _is_changed(a)]
        return sum(map(_bytes, changed)) if changed else _bytes(made)


def count(step: Callable[[], Any]) -> Traffic:
    """Count what ``step`` moves."""
    with Traffic() as traffic:
        step()
    return traffic


def _arguments(func: Any, args: tuple, kwargs: dict[str, Any]) -> Iterable[tuple[Any, Any]]:
    """The operation's arguments, as its schema describes them, with their values."""
    for index, argument in enumerate(func._schema.arguments):
        if index < len(args):
            yield argument, args[index]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


def _is_changed(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _is_view(func: Any) -> bool:
    return any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, (list, tuple)) else 0
