"""WSAM: Yue, Jiang, Ye, Gao, Liu and Zhang, *Sharpness-Aware Minimization Revisited: Weighted Sharpness as a
Regularization Term*, KDD 2023, https://arxiv.org/abs/2305.15817.
"""  # noqa: D205

from __future__ import annotations

from dataclasses import dataclass

from sam_algos.method import Method
from sam_algos.methods.gradientnormpenalty import Mixed
from sam_algos.methods.sam import Interval, PNorm
from sam_algos.parts import Parts, Radius, UnitInterval

__all__ = ["WSAM"]


@dataclass(frozen=True, repr=False)
class WSAM(Method):
    """SAM with a weight on the sharpness (`Yue et al., 2023 <https://arxiv.org/abs/2305.15817>`_).

    **Idea.** SAM's loss is the loss plus the sharpness ``L(w + ε) - L(w)``, with equal weights. Choose the weight of
    the sharpness instead.

    **Equation.** ``w ← w - η (g + γ/(1-γ) (g_s - g))``: `Mixed` with ``α = γ/(1-γ)``. The whole gradient goes through
    the base optimizer; the variant that steps along ``g_s - g`` outside of it is not offered (second-hand).

    **Cost.** 2 gradients per step. No memory between steps; during a step two copies of the parameters. The first
    gradient is synchronised between processes, since it is part of the base optimizer's gradient.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.

    **Use it** where SAM is used, at SAM's cost. The default is far from SAM: it multiplies the difference of the two
    gradients by nine.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05`` (as SAM).
        gamma (float): Weight ``γ`` of the sharpness, in [0, 1); 1/2 gives SAM. Default: ``0.9`` (second-hand).

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> import torch
        >>> from sam_algos import WSAM
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = WSAM().wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean(1))
        >>> optimizer.metrics["sam/gradients"]
        2.0
    """

    rho: Radius = 0.05
    gamma: UnitInterval = 0.9

    def parts(self) -> Parts:
        """Every step, the Euclidean ball, the plain gradient plus a multiple of what the sharp one adds."""
        return Parts(Interval(1), PNorm(self.rho), Mixed(self.gamma / (1 - self.gamma)))
