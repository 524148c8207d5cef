"""Keeping ``torch.compile`` out of the step's bookkeeping."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["uncompiled"]

_F = TypeVar("_F", bound=Callable[..., Any])


def uncompiled(function: _F) -> _F:
    """Run a function as it is when it is called from a compiled one: the graph breaks there.

    Models that are compiled themselves stay so inside. This is ``torch.compiler.disable``, which would import Dynamo
    with this package; without a compiler around, a call costs one question more.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return run  # pyright: ignore[reportReturnType]
