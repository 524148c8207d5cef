"""Fisher SAM: Kim, Li, Hu and Hospedales, *Fisher SAM: Information Geometry and Sharpness Aware Minimisation*,
ICML 2022, https://arxiv.org/abs/2206.04920.
"""  # noqa: D205

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sam_algos.core.tensors import lists as tensors
from sam_algos.core.tensors.blocks import rescale_twice_
from sam_algos.method import Method
from sam_algos.methods.sam import Interval, SharpGradient
from sam_algos.parts import Ascent, NonNegative, Parts, Perturbation, Radius, Step

__all__ = ["Fisher", "FisherSAM"]


@dataclass(frozen=True, repr=False)
class Fisher(Perturbation):
    """The steepest step in an ellipsoid of the Fisher information: ``ε = ρ u / √⟨g, u⟩``, ``u = g / (1 + η f)``.

    ``f = g²`` estimates the diagonal of the Fisher information from the mini-batch's gradient. The result depends on
    the gradient's scale: the larger a weight's gradient, the less the weight climbs.

    Args:
        rho (float | Schedule): Radius ``ρ``. Default: ``0.05``.
        eta (float): ``η``, the weight of the Fisher information; 0 gives SAM's ball. Default: ``1.0``.
    """

    eta: NonNegative = 1.0

    @property
    def reads_scale(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True unless ``eta=0``, which gives SAM's ball."""
        return self.eta > 0

    def ascend(self, step: Step) -> Ascent:
        """Compute ``u = T² g``, and ``√⟨g, u⟩ = ‖T g‖`` on the way, with ``T = 1 / √(1 + η f)``."""
        d = step.scratch()
        norm = rescale_twice_(d.values, self._factors, like=d.params, factor=self._factor)
        return Ascent(d, tensors.reciprocal(norm), disposable=True)

    def _factors(self, gradients: Sequence[Tensor], _: Sequence[Tensor]) -> list[Tensor]:
        """``T`` for each tensor."""
        return [self._factor(g) for g in gradients]

    def _factor(self, gradient: Tensor) -> Tensor:
        """``T`` for one tensor."""
        g = gradient.abs() if gradient.is_complex() else gradient
        return torch.addcmul(g.new_ones(()), g, g, value=self.eta).rsqrt_()


@dataclass(frozen=True, repr=False)
class FisherSAM(Method):
    """SAM in the Fisher information's geometry (`Kim et al., 2022 <https://arxiv.org/abs/2206.04920>`_).

    **Idea.** A network defines a distribution, and the Fisher information measures how far apart two distributions are;
    the distance between weights does not. Climb in a ball of that geometry.

    **Equation.** ``w ← w - η_lr ∇L(w + ε)`` with ``ε = ρ u / √⟨g, u⟩``, ``u = g / (1 + η g²)`` elementwise: see
    `Fisher` (second-hand: from sources that agree, not from the authors' code).

    **Cost.** 2 gradients per step. No memory between steps; during a step one copy of the parameters.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.
    With ``ascent_fraction`` that pass sees part of each batch, and recalibration helps: `sam_algos.recalibrate`.

    **Use it** like SAM. It depends on the scale of the loss: where the elements of the gradient are far below ``1/√η``,
    it is SAM. With a gradient scaler the closure of a hand-written loop must unscale; Composer's Trainer does so.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        eta (float): Weight of the Fisher information. Default: ``1.0`` (second-hand).

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
