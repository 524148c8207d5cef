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
    """Climb along what a mini-batch adds to the gradient of the whole data: ``ε = ρ d / ‖d‖``.

    ``d = g - σ m_{t-1}``, with ``m_t = λ m_{t-1} + (1-λ) g`` standing in for the full gradient. ``m`` is zero at first,
    the same on all processes, and moves on the steps that climb.

    Args:
        rho (float | Schedule): Radius ``ρ``. Default: ``0.05``.
        sigma (float): ``σ``, how much of the full gradient is taken away. Default: ``1.0``.
        lmbda (float): ``λ``, forgetting factor of its estimate, in [0, 1). Default: ``0.9``.
    """

    reads_gradient: ClassVar[bool] = True
    reads_scale: ClassVar[bool] = True  # of gradients of several steps, between which it may change
    buffers: ClassVar[tuple[str, ...]] = (MEAN,)

    sigma: NonNegative = 1.0
    lmbda: UnitInterval = 0.9

    def ascend(self, step: Step) -> Ascent:
        """``d``, and what becomes of ``m``."""
        g, m = step.gradient, step.recall(MEAN)
        d = g - self.sigma * m.among(g.params)
        m = (self.lmbda * m).add_(g, 1 - self.lmbda)
        return Ascent(d, tensors.reciprocal(d.norm()), disposable=True, remember={MEAN: m})


@dataclass(frozen=True, repr=False)
class FriendlySAM(Method):
    """SAM along the noise of the mini-batch (`Li et al., 2024 <https://arxiv.org/abs/2403.12350>`_).

    **Idea.** Of SAM's perturbation, the part along the full gradient hurts generalisation, and the part that is the
    mini-batch's own helps. Take an estimate of the full gradient away before climbing.

    **Equation.** ``w ← w - η ∇L(w + ε)`` with ``ε = ρ d / ‖d‖``, ``d = g - σ m_{t-1}`` and
    ``m_t = λ m_{t-1} + (1-λ) g``: see `Friendly`.

    **Cost.** 2 gradients per step. One tensor per parameter between steps, kept in the optimizer's state and its
    checkpoint (4 bytes per parameter in float32); during a step two copies of the parameters. The first gradient is
    synchronised between processes, as all have to remember the same.

    **BatchNorm** needs no recalibration: its statistics are those of the first pass: whole batches, clean weights.

    **Use it** where SAM is used, at SAM's cost.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        sigma (float): How much of the full gradient is taken away; with 0 it is SAM. Default: ``1.0`` (the official
            code).
        lmbda (float): Forgetting factor of its estimate. Default: ``0.9`` (the official code; 0.6 was best for
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
