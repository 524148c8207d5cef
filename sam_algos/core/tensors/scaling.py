"""The scale that a ``GradScaler`` puts on losses, and so on gradients, off and on again."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from sam_algos.core.tensors.gradients import multiply_

__all__ = ["scale_", "takes_the_step", "unscale_"]


def unscale_(params: Iterable[Tensor], scaler: GradScaler) -> None:
    """Divide the gradients by the scale. One that overflowed stays infinite or NaN, for a later step to find."""
    _multiply(params, scaler, inverse=True)


def scale_(params: Iterable[Tensor], scaler: GradScaler) -> None:
    """Multiply the gradients by the scale, which is what ``scaler.unscale_`` and ``scaler.step`` expect."""
    _multiply(params, scaler, inverse=False)


def takes_the_step() -> bool:
    """Whether the optimizer is being stepped by an enabled ``GradScaler``, as its frames on the stack tell."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == GradScaler.__module__:
            scaler = frame.f_locals.get("self")
            return isinstance(scaler, GradScaler) and scaler.is_enabled()
        frame = frame.f_back
    return False


def _multiply(params: Iterable[Tensor], scaler: GradScaler, *, inverse: bool) -> None:
    there = [p for p in params if p.grad is not None]
    if not there or not scaler.is_enabled():
        return
    scale = scaler.scale(torch.ones((), device=there[0].device))  # without waiting for the device
    multiply_(there, scale.reciprocal() if inverse else scale)
