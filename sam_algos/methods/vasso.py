"""VaSSO: Li and Giannakis, *Enhancing Sharpness-Aware Optimization Through Variance Suppression*, NeurIPS 2023,
https://arxiv.org/abs/2309.15639.
"""  # noqa: D205

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sam_algos.method import Method
from sam_algos.methods.sam import Interval, SharpGradient
from sam_algos.parts import Ascent, Fraction, Parts, Perturbation, Radius, Step, reciprocal

__all__ = ["Averaged", "VaSSO"]

DIRECTION = "vasso_direction"


@dataclass(frozen=True, repr=False)
class Averaged(Perturbation):
    """Climb along an average of gradients: ``ε = ρ d / ‖d‖`` with ``d_t = (1-θ) d_{t-1} + θ g``.

    ``d`` starts at zero, is the same on all processes, and is updated on the steps that climb.

    Args:
        rho (float | Schedule): Radius ``ρ``. Default: ``0.05``.
        theta (float): ``θ``, the weight of the newest gradient, in (0, 1]; 1 gives SAM's ball. Default: ``0.2``.
    """

    reads_gradient: ClassVar[bool] = True
    reads_scale: ClassVar[bool] = True  # it combines gradients of several steps, and the scale may change in between
    buffers: ClassVar[tuple[str, ...]] = (DIRECTION,)

    theta: Fraction = 0.2

    def ascend(self, step: Step) -> Ascent:
        """``d``. It is remembered, so its memory cannot be reused for the displaced weights."""
        d = ((1 - self.theta) * step.recall(DIRECTION)).add_(step.gradient, self.theta)
        return Ascent(d, reciprocal(d.norm()), remember={DIRECTION: d})


@dataclass(frozen=True, repr=False)
class VaSSO(Method):
    """SAM along an average of gradients (`Li and Giannakis, 2023 <https://arxiv.org/abs/2309.15639>`_).

    **Idea.** The gradient of one mini-batch is noisy, and a perturbation along noise is too weak an adversary. Climb
    along an average, which has a lower variance.

    **Equation.** ``w ← w - η ∇L(w + ε)`` with ``ε = ρ d_t / ‖d_t‖``, ``d_t = (1-θ) d_{t-1} + θ g``: see `Averaged`.

    **Cost.** 2 gradients per step. One tensor per parameter between steps, kept in the optimizer's state and its
    checkpoint (4 bytes per parameter in float32); during a step two copies of the parameters. The first gradient is
    synchronised between processes, so that all remember the same average.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.

    **Use it** where SAM is used, at SAM's cost; the paper reports robustness against label noise.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        theta (float): Weight of the newest gradient in the average, in (0, 1]; 1 gives SAM. Default: ``0.2`` (the
            official code).

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> import torch
        >>> from sam_algos import VaSSO
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = VaSSO().wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean(1))
        >>> optimizer.metrics["sam/gradients"]
        2.0
    """

    rho: Radius = 0.05
    theta: Fraction = 0.2

    def parts(self) -> Parts:
        """Every step, along an average of gradients, the sharp gradient."""
        return Parts(Interval(1), Averaged(self.rho, self.theta), SharpGradient())
