"""Ranges that show in ``torch.profiler`` where a step's time goes.

Small networks notice every call, so a function is called directly unless a profiler is active::

    within("sam/replay", record) if profiler._is_profiler_enabled else record()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from torch.autograd import profiler

__all__ = ["profiler", "within"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def within(name: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call a function in a range of this name."""
    record: Any = profiler.record_function(name)
    with record:
        return function(*args, **kwargs)
