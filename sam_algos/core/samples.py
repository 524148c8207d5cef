"""ON WHICH samples passes are run, where no paper's method decides it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sam_algos.core.options import Fraction
from sam_algos.core.parts import Climb, Parts, Samples, Update
from sam_algos.core.selection import First
from sam_algos.core.step import Step

__all__ = ["AscentFraction"]


@dataclass(frozen=True, repr=False)
class AscentFraction(Samples):
    """The ascent on the first samples of the batch, the sharp gradient on all.

    The ascent's pass only has to find a direction, and then costs this fraction of a gradient. Loss, metrics,
    ``sam/grad_norm`` and the statistics of BatchNorm are those of its samples; inputs and labels are as in the pass on
    the whole batch, dropout is not.

    Args:
        fraction (float): How many samples, in (0, 1]; rounded up, and to two where there are two. Default: ``0.25``.
    """

    selects: ClassVar[bool] = True

    fraction: Fraction = 0.25

    def sharp(self, step: Step, climb: Climb) -> Update:
        """The gradient of all samples where the first ones led."""
        return Update(step.at(climb(step.on(First(self.fraction)))).gradient)

    def conflict(self, others: Parts) -> str | None:
        """Parts that need the gradient of the whole batch, or none at all, leave nothing to save."""
        if (reader := others.reader("reads_gradient")) is not None:
            return f"with {type(reader).__name__}, which needs the plain gradient of the whole batch"
        if not others.perturbation.own_pass:
            return f"with {type(others.perturbation).__name__}, which climbs without a gradient"
        return None
