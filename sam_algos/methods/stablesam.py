"""StableSAM: Tan, Zhang, Liu, Wang and Hao, *Stabilizing Sharpness-aware Minimization Through A Simple Renormalization
Strategy*, JMLR 2025, https://arxiv.org/abs/2401.07250.
"""  # noqa: D205

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sam_algos.method import Method
from sam_algos.methods.sam import Interval, PNorm
from sam_algos.parts import Descent, Parts, Radius, Step, Update, Vector, reciprocal

__all__ = ["Rescaled", "StableSAM"]


@dataclass(frozen=True, repr=False)
class Rescaled(Descent):
    """The sharp gradient, rescaled to the length of the plain one: ``(‖g‖ / ‖g_s‖) g_s``."""

    reads_gradient: ClassVar[bool] = True

    def sharp(self, step: Step, g_s: Vector) -> Update:
        """``(‖g‖ / ‖g_s‖) g_s``."""
        return Update((step.gradient.norm() * reciprocal(g_s.norm())) * g_s)


@dataclass(frozen=True, repr=False)
class StableSAM(Method):
    """SAM with the plain gradient's length (`Tan et al., 2024 <https://arxiv.org/abs/2401.07250>`_).

    **Idea.** SAM is stable in a narrower range of learning rates than plain training. Combine the direction of SAM's
    gradient with the length of the plain gradient.

    **Equation.** ``w ← w - η (‖g‖ / ‖g_s‖) g_s``: see `Rescaled` (second-hand: as the paper's
    abstract describes it, not from the authors' code).

    **Cost.** 2 gradients per step. No memory between steps; during a step two copies of the parameters. The first
    gradient is synchronised between processes, so that all scale to the same length.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.

    **Use it** where SAM diverges at a learning rate at which plain training does not.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> import torch
        >>> from sam_algos import StableSAM
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = StableSAM().wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean(1))
        >>> length = sum(p.grad.square().sum() for p in model.parameters()).sqrt()
        >>> bool(torch.isclose(length, torch.tensor(optimizer.metrics["sam/grad_norm"])))
        True
    """

    rho: Radius = 0.05

    def parts(self) -> Parts:
        """Every step, the Euclidean ball, the sharp gradient's direction."""
        return Parts(Interval(1), PNorm(self.rho), Rescaled())
