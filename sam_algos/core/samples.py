"""ON WHICH samples passes are run, where no paper's method decides it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sam_algos.core.objective.view import Step
from sam_algos.core.options import Fraction, PositiveInt
from sam_algos.core.parts import Climb, Parts, Samples, Update
from sam_algos.core.passes.selection import First

__all__ = ["AscentFraction", "Groups"]


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
        return _climbs_by_some(others)


@dataclass(frozen=True, repr=False)
class Groups(Samples):
    """Groups of ``m`` consecutive samples, each with an ascent of its own; their sharp gradients are averaged.

    With ``g_i`` the gradient of group ``i`` of ``n_i`` samples out of ``n``, ``ε_i`` its perturbation and ``g_s,i`` its
    gradient at ``w + ε_i``, the sharp gradient is ``Σ (n_i / n) g_s,i``. All groups see the batch from the same random
    state. Loss, metrics and ``sam/grad_norm`` are those of the first group; of several microbatches, a group has ``m``
    samples each. Layers with statistics over the batch (BatchNorm in training mode) are refused, as they would have
    those of a group. Processes need batches of one size, as they run one number of passes.

    Args:
        m (int): Samples of a group; the last one may have fewer. Default: ``16``.
    """

    selects: ClassVar[bool] = True

    m: PositiveInt = 16

    def sharp(self, step: Step, climb: Climb) -> Update:
        """``Σ (n_i / n) g_s,i``, in the memory of the first."""
        _refuse_batch_statistics(step.model)
        found = ((group, group.at(climb(group)).scratch()) for group in step.split(self.m))
        first, total = next(found)
        if first.share < 1:
            total.mul_(first.share)
        for group, g_s in found:
            total.add_(g_s, group.share)
        return Update(total)

    def conflict(self, others: Parts) -> str | None:
        """Parts that need the gradient of the whole batch, or none at all."""
        return _climbs_by_some(others)


def _refuse_batch_statistics(model: nn.Module) -> None:
    """Refuse a model whose layers have statistics over the batch, where no pass is run on all of it.

    Raises:
        ValueError: If there is one, with its name.
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise ValueError(
                f"SAM(m=...) runs every pass on a group of the batch, and {name} ({type(module).__name__}) would "
                "normalise by that group's statistics. Use a layer without them, such as GroupNorm, or freeze it with "
                "eval()."
            )


def _climbs_by_some(others: Parts) -> str | None:
    """What there is against an ascent by the gradient of some of the samples."""
    if (reader := others.reader("reads_gradient")) is not None:
        return f"with {type(reader).__name__}, which needs the plain gradient of the whole batch"
    if not others.perturbation.own_pass:
        return f"with {type(others.perturbation).__name__}, which climbs without a gradient"
    return None
