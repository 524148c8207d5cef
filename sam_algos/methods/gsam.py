"""GSAM: Zhuang, Gong, Yuan, Cui, Adam, Dvornek, Tatikonda, Duncan and Liu, *Surrogate Gap Minimization Improves
Sharpness-Aware Training*, ICLR 2022, https://arxiv.org/abs/2203.08065.
"""  # noqa: D205

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sam_algos.method import Method
from sam_algos.methods.sam import Interval, PNorm
from sam_algos.parts import (
    Descent,
    NonNegative,
    Parts,
    Proportional,
    Radius,
    Schedule,
    Step,
    Update,
    Vector,
    reciprocal,
)

__all__ = ["GSAM", "SurrogateGap"]


@dataclass(frozen=True, repr=False)
class SurrogateGap(Descent):
    """Lower both the perturbed loss and the surrogate gap ``L(w + ε) - L(w)``: ``g_s - α g_⊥``.

    ``g_⊥ = g - (⟨g, g_s⟩ / ‖g_s‖²) g_s`` is the part of the plain gradient orthogonal to ``g_s``. Climbing along it
    raises the loss at ``w``, which closes the gap, and to first order does not change the perturbed loss.

    Args:
        alpha (float): ``α``; 0 gives SAM's descent. Default: ``0.4``.
    """

    reads_gradient: ClassVar[bool] = True

    alpha: NonNegative = 0.4

    def sharp(self, step: Step, g_s: Vector) -> Update:
        """``g_s - α g_⊥ = (1 + α ⟨g, g_s⟩ / ‖g_s‖²) g_s - α g``, computed in the plain gradient's memory."""
        if not self.alpha:
            return Update(g_s)
        inverse = reciprocal(g_s.norm())
        parallel = step.gradient.dot(g_s) * inverse * inverse
        return Update(step.scratch().mul_(-self.alpha).add_(g_s, 1 + self.alpha * parallel))


@dataclass(frozen=True, repr=False)
class GSAM(Method):
    """SAM that narrows the surrogate gap (`Zhuang et al., 2022 <https://arxiv.org/abs/2203.08065>`_).

    **Idea.** A low loss at ``w + ε`` does not tell a flat minimum from a sharp one; the surrogate gap
    ``L(w + ε) - L(w)`` does. Narrow the gap in directions that do not raise the perturbed loss.

    **Equation.** ``w ← w - η (g_s - α g_⊥)`` with ``g_⊥ = g - (⟨g, g_s⟩ / ‖g_s‖²) g_s``: see `SurrogateGap`. With
    ``rho_min``, ``ρ_t = ρ_min + (ρ - ρ_min) (η_t - η_min) / (η_max - η_min)``: see `Proportional` for ``η_min``.

    **Cost.** 2 gradients per step. No memory between steps; during a step two copies of the parameters. The first
    gradient is synchronised between processes, since it is part of the base optimizer's gradient.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.

    **Use it** where SAM is used, at SAM's cost.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        alpha (float): Multiple of ``g_⊥`` to subtract; 0 gives SAM. Default: ``0.4`` (the official code).
        rho_min (float, optional): The radius where the learning rate is zero. The radius falls with the learning rate
            from ``rho`` to it: ``rho=Proportional(rho, rho_min)``. Default: ``None``, a constant radius.

    Raises:
        ValueError: If an argument is outside its range, ``rho_min`` is above ``rho``, or ``rho_min`` is given with a
            schedule as ``rho``.

    Example:
        >>> import torch
        >>> from sam_algos import GSAM
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = GSAM().wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean(1))
        >>> optimizer.metrics["sam/gradients"]
        2.0
    """

    rho: Radius = 0.05
    alpha: NonNegative = 0.4
    rho_min: NonNegative | None = None

    def __post_init__(self) -> None:
        """Check the arguments, and refuse ``rho_min`` with a schedule."""
        rho, rho_min = self.rho, self.rho_min
        if isinstance(rho, int | float) and isinstance(rho_min, int | float) and rho_min > rho:
            raise ValueError(f"GSAM(rho_min={self.rho_min!r}): rho_min must be at most rho, {self.rho!r}.")
        if self.rho_min is not None and isinstance(self.rho, Schedule):
            raise ValueError(f"GSAM(rho_min={self.rho_min!r}): rho_min must be None with a schedule, rho={self.rho!r}.")
        super().__post_init__()

    def parts(self) -> Parts:
        """Every step, the Euclidean ball, the sharp gradient minus the part that widens the gap."""
        rho = self.rho
        if self.rho_min is not None and not isinstance(rho, Schedule):
            rho = Proportional(rho, self.rho_min)
        return Parts(Interval(1), PNorm(rho), SurrogateGap(self.alpha))
