"""SAM: Foret, Kleiner, Mobahi and Neyshabur, *Sharpness-Aware Minimization for Efficiently Improving
Generalization*, ICLR 2021, https://arxiv.org/abs/2010.01412.
"""  # noqa: D205

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from sam_algos import tensors
from sam_algos.algorithm import Method
from sam_algos.options import NormOrder, Positive, PositiveInt
from sam_algos.parts import Ascent, Decision, Descent, Memory, Parts, Perturbation, Policy, Step

__all__ = ["SAM", "Interval", "PNorm", "SharpGradient"]


@dataclass(frozen=True, repr=False)
class Interval(Policy):
    """Sharp on steps ``t`` with ``t % k == 0``, so on the first step too.

    Args:
        k (int): Steps from one sharp step to the next. Default: ``1``.
    """

    k: PositiveInt = 1

    def decide(self, memory: Memory, step: Step) -> Decision:
        """Sharp iff ``t % k == 0``."""
        return Decision(step.index % self.k == 0, memory)


@dataclass(frozen=True, repr=False)
class PNorm(Perturbation):
    """The step of length ``ρ`` that climbs most, measured in the p-norm (equation 2).

    ``ε = ρ · sign(g) · |g|^(q-1) / (‖g‖_q^q)^(1/p)`` with ``1/p + 1/q = 1``. ``p = 2`` is ``ρ g / ‖g‖``,
    ``p = ∞`` is ``ρ sign(g)``, and ``p = 1`` moves the one weight with the largest gradient.

    Args:
        rho (float): Radius ``ρ``. Default: ``0.05``.
        p (float): Order of the norm, from 1 to infinity. Default: ``2.0``.
    """

    p: NormOrder = 2.0

    def ascend(self, step: Step) -> Ascent:
        """``|g|^(q-1)`` and its norm; the gradient itself for ``p = 2``."""
        if self.p == 2:
            return Ascent(step.grads, tensors.reciprocal(step.grad_norm))
        peak = tensors.largest(step.grads, step.params)
        if self.p == 1:
            # Should several weights share the largest gradient, they share the radius.
            directions = [torch.where(g.abs() == peak, g.sgn(), 0) for g in step.grads]
            return Ascent(directions, tensors.reciprocal(step.dot(directions, directions)))
        if math.isinf(self.p):
            return Ascent([g.sgn() for g in step.grads], torch.ones_like(peak))
        # Powers of |g| / max|g| neither overflow nor vanish, and the factor cancels.
        q = self.p / (self.p - 1)
        inverse = tensors.reciprocal(peak, torch.finfo(torch.float32).tiny)
        directions = [g.sgn() * (g.abs() * inverse).pow_(q - 1) for g in step.grads]
        q_norm_to_q = step.dot(directions, step.grads) * inverse
        return Ascent(directions, tensors.reciprocal(q_norm_to_q.pow(1 / self.p)))


@dataclass(frozen=True, repr=False)
class SharpGradient(Descent):
    """The gradient ``g_s`` at the perturbed weights on a sharp step, the plain ``g`` on a flat one."""


@dataclass(frozen=True, repr=False)
class SAM(Method):
    """Sharpness-aware minimization (`Foret et al., 2021 <https://arxiv.org/abs/2010.01412>`_).

    **Idea.** Minimise the highest loss in a ball around the weights instead of the loss at the weights: the
    optimizer then settles where the whole neighbourhood is low, in a flat minimum, which generalises better.

    **Equation.** ``w ← w - η ∇L(w + ε)`` with ``ε = ρ g / ‖g‖``, ``g = ∇L(w)`` on the same mini-batch
    (in the p-norm: `PNorm`).

    **Cost.** 2 gradients per sharp step, ``1 + 1/interval`` on average. No memory between steps; during a sharp
    step one copy of the parameters.

    **Use it** when accuracy matters more than time, and above all with noisy labels or few data; with
    ``interval`` when time matters as well.

    Args:
        rho (float): Radius of the perturbation. Default: ``0.05``, "often satisfactory" (the paper, section 3.1;
            it tunes over 0.01, 0.02, 0.05, 0.1, 0.2, 0.5). Raise it with label noise.
        interval (int): Sharp steps are those with ``t % interval == 0``. Default: ``1``, as in the paper.
        p (float): Order of the norm of the ball. Default: ``2.0``, "typically optimal" (the paper, appendix C.5).
        synchronize (bool): See `Method`. Default: ``False``.
        nonfinite (str): See `Method`. Default: ``'pass'``.
        ascent_fraction (float): See `Method`; 0.25 takes a step of 2 gradients to 1.25. Default: ``1.0``.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> import torch
        >>> from sam_algos import SAM
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = SAM(rho=0.1).wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(4, 2)).square().mean()
        ...     loss.backward()
        ...     return loss
        >>> _ = optimizer.step(closure)
        >>> optimizer.metrics["sam/applied"]
        1.0
    """

    rho: Positive = 0.05
    interval: PositiveInt = 1
    p: NormOrder = 2.0

    def parts(self) -> Parts:
        """Every ``interval`` steps, the p-norm ball, the sharp gradient."""
        return Parts(Interval(self.interval), PNorm(self.rho, self.p), SharpGradient())
