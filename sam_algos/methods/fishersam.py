"""Fisher SAM: Kim, Li, Hu and Hospedales, *Fisher SAM: Information Geometry and Sharpness Aware Minimisation*,
ICML 2022, https://arxiv.org/abs/2206.04920.
"""  # noqa: D205

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sam_algos.core.tensors import lists as tensors
from sam_algos.core.tensors.blocks import blocks
from sam_algos.method import Method
from sam_algos.methods.sam import Interval, SharpGradient
from sam_algos.parts import Ascent, NonNegative, Parts, Perturbation, Radius, Step

__all__ = ["Fisher", "FisherSAM"]


@dataclass(frozen=True, repr=False)
class Fisher(Perturbation):
    """The steepest step in an ellipsoid of the Fisher information: ``ε = ρ u / √⟨g, u⟩``, ``u = g / (1 + η f)``.

    ``f = g²`` stands for the diagonal of the Fisher information, estimated by the mini-batch's gradient. It depends on
    the gradient's scale: the larger a gradient, the less its weight climbs.

    Args:
        rho (float | Schedule): Radius ``ρ``. Default: ``0.05``.
        eta (float): ``η``, how much the Fisher information counts; with 0 it is SAM's ball. Default: ``1.0``.
    """

    eta: NonNegative = 1.0

    @property
    def reads_scale(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Unless it is SAM's ball."""
        return self.eta > 0

    def ascend(self, step: Step) -> Ascent:
        """``u = T² g``, and ``√⟨g, u⟩ = ‖T g‖`` on the way, with ``T = 1 / √(1 + η f)``."""
        d = step.scratch()
        norms = []
        for products, of in blocks(d.values, like=d.params):
            factors = [g.abs().square_().mul_(self.eta).add_(1).rsqrt_() for g in products]
            torch._foreach_mul_(products, factors)
            norms.append(tensors.norm(products, of))
            torch._foreach_mul_(products, factors)
        return Ascent(d, tensors.reciprocal(tensors.norm(norms, norms)), disposable=True)


@dataclass(frozen=True, repr=False)
class FisherSAM(Method):
    """SAM in the Fisher information's geometry (`Kim et al., 2022 <https://arxiv.org/abs/2206.04920>`_).

    **Idea.** Networks are distributions, and how far apart two of them are is measured by the Fisher information, not
    by the distance of their weights. Climb in a ball of that geometry.

    **Equation.** ``w ← w - η_lr ∇L(w + ε)`` with ``ε = ρ u / √⟨g, u⟩``, ``u = g / (1 + η g²)`` elementwise: see
    `Fisher` (second-hand: from sources that agree, not from the authors' code).

    **Cost.** 2 gradients per step. No memory between steps; during a step one copy of the parameters.

    **BatchNorm** needs no recalibration: its statistics are those of the first pass: whole batches, clean weights
    (with ``ascent_fraction`` parts of them, and recalibration helps: `sam_algos.recalibrate`).

    **Use it** as SAM. It depends on the scale of the loss: where the elements of the gradient are far below ``1/√η``,
    it is SAM. With a gradient scaler the closure of a hand-written loop has to unscale; Composer's Trainer does.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        eta (float): How much the Fisher information counts. Default: ``1.0`` (second-hand).

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> import torch
        >>> from sam_algos import FisherSAM
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = FisherSAM().wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean(1))
        >>> optimizer.metrics["sam/gradients"]
        2.0
    """

    title: ClassVar[str] = "Fisher SAM"

    rho: Radius = 0.05
    eta: NonNegative = 1.0

    def parts(self) -> Parts:
        """Every step, the Fisher information's ellipsoid, the sharp gradient."""
        return Parts(Interval(1), Fisher(self.rho, self.eta), SharpGradient())
