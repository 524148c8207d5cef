"""SAM along a random direction: the ablation of Foret et al., ICLR 2021, https://arxiv.org/abs/2010.01412, Figure 6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sam_algos.core.tensors import lists as tensors
from sam_algos.method import Method
from sam_algos.methods.sam import Interval, SharpGradient
from sam_algos.parts import Ascent, Parts, Perturbation, Radius, Seed, Step

__all__ = ["RandomDirection", "RandomSAM"]


@dataclass(frozen=True, repr=False)
class RandomDirection(Perturbation):
    """A random direction: ``ε = ρ z / ‖z‖`` with ``z ~ N(0, I)``.

    Args:
        rho (float | Schedule): Radius ``ρ``. Default: ``0.05``.
        seed (int): Seed of the draws. Default: ``0``.
    """

    own_pass: ClassVar[bool] = False  # it reads no gradient, so the step takes one pass

    seed: Seed = 0

    def ascend(self, step: Step) -> Ascent:
        """``z``, drawn from the step's own random stream: the same on all processes and after a resume."""
        z = step.normal(self.seed)
        return Ascent(z, tensors.reciprocal(z.norm()), disposable=True)


@dataclass(frozen=True, repr=False)
class RandomSAM(Method):
    """SAM along a random direction (`Foret et al., 2021 <https://arxiv.org/abs/2010.01412>`_).

    **Idea.** Is it the ascent that helps, or any noise of the same length?

    **Equation.** ``w ← w - η ∇L(w + ε)`` with ``ε = ρ z / ‖z‖`` and ``z ~ N(0, I)``: see `RandomDirection`.

    **Cost.** 1 gradient per step. No memory between steps; during a step one copy of the parameters.

    **BatchNorm** needs recalibration after training: no pass is at the clean weights (`sam_algos.recalibrate`).

    **Use it** as the baseline that an ascent has to beat. Loss and metrics are measured at the displaced weights.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        seed (int): Seed of the directions. Default: ``0``.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> import torch
        >>> from sam_algos import RandomSAM
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = RandomSAM().wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean(1))
        >>> optimizer.metrics["sam/gradients"]
        1.0
    """

    rho: Radius = 0.05
    seed: Seed = 0

    def parts(self) -> Parts:
        """Every step, a random direction, the gradient found there."""
        return Parts(Interval(1), RandomDirection(self.rho, self.seed), SharpGradient())
