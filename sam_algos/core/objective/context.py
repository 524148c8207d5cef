"""What the passes of every step of an optimizer need."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.optim import Optimizer

from sam_algos.core.objective.radii import OwnRadii
from sam_algos.core.objective.sight import Sight
from sam_algos.core.objective.stopwatch import Stopwatch
from sam_algos.core.passes.contract import Passes
from sam_algos.core.refusals import is_private
from sam_algos.core.tensors.displacement import Displacement
from sam_algos.core.tensors.parameters import Names

__all__ = ["Context", "Needs"]


@dataclass(frozen=True)
class Needs:
    """What has to be known, kept and averaged for the parts of a method.

    Attributes:
        synchronized: Whether data-parallel processes average the gradients of the ascent.
        gradient_after_ascent: Whether the plain gradient is read after the ascent, so that it has to be kept.
        losses: Whether the loss of each sample is read.
        seconds: Whether the duration of steps is read.
        one_pass: Whether no part reads a gradient or a loss at the weights themselves, so that one pass is enough.
    """

    synchronized: bool
    gradient_after_ascent: bool
    losses: bool
    seconds: bool
    one_pass: bool


@dataclass
class Context:
    """What the passes of every step of an optimizer need.

    Attributes:
        passes: How they reach the program.
        needs: What the parts need.
        names: What the model calls parameters.
        displacement: Moves the weights.
        radii: The radii that parameter groups have of their own.
        private: Whether the base optimizer steps by per-sample gradients of the last backward pass.
        sight: Which closures have been seen to see the displaced weights.
        stopwatch: Measures steps, if a part reads their duration.
    """

    passes: Passes
    needs: Needs
    names: Names
    displacement: Displacement
    radii: OwnRadii
    private: bool
    sight: Sight = field(default_factory=Sight)

    def __post_init__(self) -> None:
        """Time steps only where somebody reads how long they take."""
        self.passes.timed = self.needs.seconds
        self.stopwatch = Stopwatch(self.passes) if self.needs.seconds else None

    @classmethod
    def around(cls, base: Optimizer, passes: Passes, needs: Needs) -> Context:
        """The context of the passes around a base optimizer."""
        return cls(
            passes, needs, Names(passes.model), Displacement(passes.tensors), OwnRadii(base), private=is_private(base)
        )
