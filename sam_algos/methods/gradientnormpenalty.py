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
        alpha (float): ``α``, the weight of ``g_s``; 1 gives SAM's descent, and above 1 the weight of ``g`` is negative.
            Default: ``0.8``.
    """

    reads_gradient: ClassVar[bool] = True

    alpha: NonNegative = 0.8

    def sharp(self, step: Step, g_s: Vector) -> Update:
        """``(1-α) g + α g_s``, computed in the plain gradient's memory."""
        if self.alpha == 1:
            return Update(g_s)
        return Update(step.scratch().mul_(1 - self.alpha).add_(g_s, self.alpha))


@dataclass(frozen=True, repr=False)
class GradientNormPenalty(Method):
    """Penalise the norm of the gradient (`Zhao et al., 2022 <https://arxiv.org/abs/2202.03599>`_).

    **Idea.** A minimum is flat if the gradients around it are small: minimise ``L + λ ‖∇L‖``. The gradient of the norm
    is a product with the Hessian, which a difference of two gradients approximates.

    **Equation.** ``w ← w - η ((1-α) g + α g_s)`` with ``g_s = ∇L(w + ρ g / ‖g‖)`` and ``α = λ / ρ``: see `Mixed`.

    **Cost.** 2 gradients per step. No memory between steps; during a step two copies of the parameters. The first
    gradient is synchronised between processes, since it is part of the base optimizer's gradient.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.

    **Use it** where SAM is used, at SAM's cost.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        alpha (float): Weight of the sharp gradient; 1 gives SAM. Default: ``0.8`` (the official code).

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
