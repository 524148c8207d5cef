"""What the passes of every step of an optimizer need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from sam_algos.core.objective.radii import OwnRadii
from sam_algos.core.objective.sight import Sight
from sam_algos.core.objective.stopwatch import Stopwatch
from sam_algos.core.parts import Ascent, Parts
from sam_algos.core.passes.contract import Passes
from sam_algos.core.stepping.activity import Activity
from sam_algos.core.stepping.handover import is_private
from sam_algos.core.tensors.displacement import Displacement
from sam_algos.core.tensors.parameters import Names

__all__ = ["Surroundings"]


@dataclass
class Surroundings:
    """What the passes of every step of an optimizer need.

    Attributes:
        passes: How they reach the program.
        parts: The parts, for what they declare.
        names: What the model calls parameters.
        displacement: Moves the weights.
        base: The base optimizer, for its parameter groups and its state.
        synchronize: Whether data-parallel processes average the gradients of the ascent.
        nonfinite: What becomes of a gradient that is not finite.
    """

    passes: Passes
    parts: Parts
    names: Names
    displacement: Displacement
    base: Optimizer
    synchronize: bool = False
    nonfinite: Literal["pass", "skip"] = "pass"

    def __post_init__(self) -> None:
        """Collect what the parts declare."""
        self.synchronize |= self.parts.reader("reads_gradient") is not None
        self.activity = Activity(self.parts, self.passes)
        self.radii = OwnRadii(self.base)
        after_the_ascent = (*self.parts.descent.tree(), *self.parts.samples.tree())
        self.keeps_gradient = any(part.reads_gradient for part in after_the_ascent)
        self.reads_losses = self.parts.reader("reads_losses") is not None
        self.sight = Sight()
        self.stopwatch = Stopwatch(self.passes) if self.parts.reader("reads_seconds") is not None else None
        needs = self.parts.reader("reads_gradient") or self.parts.reader("reads_losses")
        self.one_pass = needs is None and not self.parts.perturbation.own_pass
        self.private = is_private(self.base)

    def maximized(self) -> list[Tensor]:
        """The parameters along whose gradients the base optimizer climbs: ``maximize`` of their group, or its own."""
        base: Any = self.base
        own = getattr(base, "maximize", False)
        return [p for group in base.param_groups if group.get("maximize", own) for p in group["params"]]

    def scales(self, ascent: Ascent, radius: float) -> list[Tensor]:
        """``ρ · scale`` for each parameter of an ascent, with its group's own radius where it has one."""
        params, scale = ascent.direction.params, ascent.scale
        if ascent.absolute:
            return [scale] * len(params)
        if not (own := self.radii.by_parameter()):
            return [scale * radius] * len(params)
        scaled = {rho: scale * rho for rho in {radius, *own.values()}}
        return [scaled[own.get(id(p), radius)] for p in params]

    def moving(self, params: Sequence[Tensor], radius: float) -> list[Tensor]:
        """Those of some parameters whose radius is above 0."""
        own = self.radii.by_parameter()
        return [p for p in params if own.get(id(p), radius) > 0]
