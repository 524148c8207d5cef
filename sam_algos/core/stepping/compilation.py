"""What a step runs under: no gradients, and no compiler."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["bookkeeping"]

_F = TypeVar("_F", bound=Callable[..., Any])


def bookkeeping(function: _F) -> _F:
    """Run a function without recording gradients and uncompiled: in a compiled caller, the graph breaks there.

    Models that are compiled themselves stay so inside. Decorating with ``torch.no_grad`` and ``torch.compiler.disable``
    would do the same, takes three times the calls, and would import Dynamo with this package.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(run)(*args, **kwargs)
        before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            return function(*args, **kwargs)
        finally:
            torch._C._set_grad_enabled(before)

    return run  # pyright: ignore[reportReturnType]
