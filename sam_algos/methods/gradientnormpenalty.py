"""Gradient norm penalty: Zhao, Zhang and Hu, *Penalizing Gradient Norm for Efficiently Improving Generalization in Deep
Learning*, ICML 2022, https://arxiv.org/abs/2202.03599.
"""  # noqa: D205

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sam_algos.method import Method
from sam_algos.methods.sam import Interval, PNorm
from sam_algos.parts import Descent, NonNegative, Parts, Radius, Step, Update, Vector

__all__ = ["GradientNormPenalty", "Mixed"]


@dataclass(frozen=True, repr=False)
class Mixed(Descent):
    """A mixture of both gradients: ``(1-α) g + α g_s``.

    Args:
        alpha (float): ``α``, the share of ``g_s``; with 1 it is SAM's descent, beyond 1 ``g`` counts against. Default:
            ``0.8``.
    """

    reads_gradient: ClassVar[bool] = True

    alpha: NonNegative = 0.8

    def sharp(self, step: Step, g_s: Vector) -> Update:
        """``(1-α) g + α g_s``, in the plain gradient's memory."""
        if self.alpha == 1:
            return Update(g_s)
        return Update(step.scratch().mul_(1 - self.alpha).add_(g_s, self.alpha))


@dataclass(frozen=True, repr=False)
class GradientNormPenalty(Method):
    """Penalise the norm of the gradient (`Zhao et al., 2022 <https://arxiv.org/abs/2202.03599>`_).

    **Idea.** Where the gradient is short around a minimum, the minimum is flat: minimise ``L + λ ‖∇L‖``. The gradient
    of the norm is a product with the Hessian, for which a difference of two gradients stands in.

    **Equation.** ``w ← w - η ((1-α) g + α g_s)`` with ``g_s = ∇L(w + ρ g / ‖g‖)`` and ``α = λ / ρ``: see `Mixed`.

    **Cost.** 2 gradients per step. No memory between steps; during a step two copies of the parameters. The first
    gradient is synchronised between processes, as the base optimizer gets a part of it.

    **BatchNorm** needs no recalibration: its statistics are those of the first pass: whole batches, clean weights.

    **Use it** where SAM is used, at SAM's cost.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        alpha (float): Share of the sharp gradient; with 1 it is SAM. Default: ``0.8`` (the official code).

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> import torch
        >>> from sam_algos import GradientNormPenalty
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = GradientNormPenalty().wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean(1))
        >>> optimizer.metrics["sam/gradients"]
        2.0
    """

    title: ClassVar[str] = "Gradient norm penalty"

    rho: Radius = 0.05
    alpha: NonNegative = 0.8

    def parts(self) -> Parts:
        """Every step, the Euclidean ball, a mixture of both gradients."""
        return Parts(Interval(1), PNorm(self.rho), Mixed(self.alpha))
