"""What parts answer when the step asks them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from sam_algos.core.tensors.vector import Vector

__all__ = ["NOTHING", "Ascent", "Decision", "Memory", "Rho", "Update"]

Memory = Mapping[str, Any]
"""What a part remembers, by name: Python numbers and vectors, both equal on all ranks (see `Part.reads_gradient`)."""

NOTHING: Memory = {}


class Decision(NamedTuple):
    """A policy's answer for one step.

    Attributes:
        sharp: Whether the step is sharpness-aware.
        remember: What the policy will remember if the step succeeds.
        log: Figures to log with the step, by name.
    """

    sharp: bool
    remember: Memory = NOTHING
    log: Mapping[str, float] = NOTHING


class Rho(NamedTuple):
    """A schedule's answer for one step, where it has something to remember.

    Attributes:
        rho: The radius ``ρ``, >= 0. A scalar tensor stays on its device, and the step does not wait for it.
        remember: What the schedule will remember if the step succeeds.
    """

    rho: float | Tensor
    remember: Memory = NOTHING


class Ascent(NamedTuple):
    """A perturbation, by default in units of the radius: ``ε = ρ · scale · direction``.

    Attributes:
        direction: Parameters that are missing from it stay where they are, at no cost.
        scale: A scalar tensor, left on its device.
        disposable: Whether the direction was made for this step, so that the displaced weights may be written into its
            memory. (Leave it False for a gradient: the step knows whether anybody reads it again.)
        remember: What the perturbation will remember if the step succeeds.
        absolute: Whether ``ε = scale · direction``, whatever the radius is.
    """

    direction: Vector
    scale: Tensor
    disposable: bool = False
    remember: Memory = NOTHING
    absolute: bool = False


class Update(NamedTuple):
    """The gradient for the base optimizer.

    Attributes:
        gradient: The gradient to step with. Parameters missing from it are not stepped.
        remember: What the part will remember if the step succeeds.
    """

    gradient: Vector
    remember: Memory = NOTHING
