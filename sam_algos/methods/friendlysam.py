"""Friendly SAM: Li, Zhou, He, Cheng and Huang, *Friendly Sharpness-Aware Minimization*, CVPR 2024,
https://arxiv.org/abs/2403.12350.
"""  # noqa: D205

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sam_algos.core.tensors import lists as tensors
from sam_algos.method import Method
from sam_algos.methods.sam import Interval, SharpGradient
from sam_algos.parts import Ascent, NonNegative, Parts, Perturbation, Radius, Step, UnitInterval

__all__ = ["Friendly", "FriendlySAM"]

MEAN = "friendly_mean"


@dataclass(frozen=True, repr=False)
class Friendly(Perturbation):
    """Climb along the part of the gradient that is specific to the mini-batch: ``ε = ρ d / ‖d‖``.

    ``d = g - σ m_{t-1}``, where ``m_t = λ m_{t-1} + (1-λ) g`` estimates the full gradient. ``m`` starts at zero, is the
    same on all processes, and is updated on the steps that climb.

    Args:
        rho (float | Schedule): Radius ``ρ``. Default: ``0.05``.
        sigma (float): ``σ``, the multiple of the estimated full gradient to subtract. Default: ``1.0``.
        lmbda (float): ``λ``, forgetting factor of the estimate, in [0, 1). Default: ``0.9``.
    """

    reads_gradient: ClassVar[bool] = True
    reads_scale: ClassVar[bool] = True  # it combines gradients of several steps, and the scale may change in between
    buffers: ClassVar[tuple[str, ...]] = (MEAN,)

    sigma: NonNegative = 1.0
    lmbda: UnitInterval = 0.9

    def ascend(self, step: Step) -> Ascent:
        """``d``, and the new ``m``."""
        g, m = step.gradient, step.recall(MEAN)
        d = g - self.sigma * m.among(g.params)
        m = (self.lmbda * m).add_(g, 1 - self.lmbda)
        return Ascent(d, tensors.reciprocal(d.norm()), disposable=True, remember={MEAN: m})


@dataclass(frozen=True, repr=False)
class FriendlySAM(Method):
    """SAM along the noise of the mini-batch (`Li et al., 2024 <https://arxiv.org/abs/2403.12350>`_).

    **Idea.** The part of SAM's perturbation along the full gradient hurts generalisation; the part specific to the
    mini-batch helps. Subtract an estimate of the full gradient before climbing.

    **Equation.** ``w ← w - η ∇L(w + ε)`` with ``ε = ρ d / ‖d‖``, ``d = g - σ m_{t-1}`` and
    ``m_t = λ m_{t-1} + (1-λ) g``: see `Friendly`.

    **Cost.** 2 gradients per step. One tensor per parameter between steps, kept in the optimizer's state and its
    checkpoint (4 bytes per parameter in float32); during a step two copies of the parameters. The first gradient is
    synchronised between processes, so that all remember the same average.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.

    **Use it** where SAM is used, at SAM's cost.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        sigma (float): Multiple of the estimated full gradient to subtract; 0 gives SAM. Default: ``1.0`` (the official
            code).
        lmbda (float): Forgetting factor of the estimate. Default: ``0.9`` (the official code; 0.6 was best for
            ResNet-18).

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> import torch
        >>> from sam_algos import FriendlySAM
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = FriendlySAM().wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean(1))
        >>> optimizer.metrics["sam/gradients"]
        2.0
    """

    title: ClassVar[str] = "Friendly SAM"

    rho: Radius = 0.05
    sigma: NonNegative = 1.0
    lmbda: UnitInterval = 0.9

    def parts(self) -> Parts:
        """Every step, along the mini-batch's noise, the sharp gradient."""
        return Parts(Interval(1), Friendly(self.rho, self.sigma, self.lmbda), SharpGradient())
