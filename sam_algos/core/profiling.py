"""Ranges that show in ``torch.profiler`` where a step's time goes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.autograd import profiler

__all__ = ["span"]

_NOTHING = nullcontext()


def span(name: str) -> AbstractContextManager[Any]:
    """A range with a name while a profiler is active; nothing, at no cost, otherwise."""
    return profiler.record_function(name) if profiler._is_profiler_enabled else _NOTHING
