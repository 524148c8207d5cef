"""Ranges that show in ``torch.profiler`` where a step's time goes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from torch.autograd import profiler

__all__ = ["is_profiled", "within"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def is_profiled() -> bool:
    """Whether a profiler is active."""
    return profiler._is_profiler_enabled


def within(name: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function, in a range of this name if a profiler is active."""
    if not profiler._is_profiler_enabled:
        return function(*args, **kwargs)
    record: Any = profiler.record_function(name)
    with record:
        return function(*args, **kwargs)
