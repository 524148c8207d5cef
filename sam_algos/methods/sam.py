"""SAM: Foret, Kleiner, Mobahi and Neyshabur, *Sharpness-Aware Minimization for Efficiently Improving
Generalization*, ICLR 2021, https://arxiv.org/abs/2010.01412.
"""  # noqa: D205

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from sam_algos.core.tensors import lists as tensors
from sam_algos.method import Method
from sam_algos.parts import (
    Ascent,
    Decision,
    Descent,
    Groups,
    NonNegative,
    NormOrder,
    Parts,
    Perturbation,
    Policy,
    PositiveInt,
    Radius,
    Step,
    Update,
    Vector,
    WholeBatch,
)

__all__ = ["SAM", "Interval", "PNorm", "ProjectedAscent", "SecondOrder", "SharpGradient"]


@dataclass(frozen=True, repr=False)
class Interval(Policy):
    """Sharp on steps ``t`` with ``t % k == 0``, so on the first step too.

    Args:
        k (int): Steps from one sharp step to the next. Default: ``1``.
    """

    k: PositiveInt = 1

    def decide(self, step: Step) -> Decision:
        """Sharp iff ``t % k == 0``."""
        return Decision(step.index % self.k == 0)


@dataclass(frozen=True, repr=False)
class PNorm(Perturbation):
    """The step of length ``ρ`` that climbs most, measured in the p-norm (equation 2).

    ``ε = ρ · sign(g) · |g|^(q-1) / (‖g‖_q^q)^(1/p)`` with ``1/p + 1/q = 1``. ``p = 2`` is ``ρ g / ‖g‖``,
    ``p = ∞`` is ``ρ sign(g)``, and ``p = 1`` moves the one weight with the largest gradient.

    Args:
        rho (float | Schedule): Radius ``ρ``. Default: ``0.05``.
        p (float): Order of the norm, from 1 to infinity. Default: ``2.0``.
        epsilon (float): With ``p = 2``, makes the step ``ρ g / (‖g‖ + epsilon)``, which is shorter where ``‖g‖`` is as
            small as ``epsilon``. Default: ``0.0``.
    """

    p: NormOrder = 2.0
    epsilon: NonNegative = field(default=0.0, kw_only=True)

    @property
    def reads_scale(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """True with ``epsilon``, which is compared with ``‖g‖``."""
        return self.epsilon > 0

    def __post_init__(self) -> None:
        """Check the arguments."""
        super().__post_init__()
        if self.epsilon and self.p != 2:
            raise ValueError(f"PNorm(epsilon={self.epsilon!r}): epsilon must be 0 with p={self.p!r}.")

    def ascend(self, step: Step) -> Ascent:
        """``|g|^(q-1)`` and its norm; the gradient itself for ``p = 2``."""
        g = step.gradient
        if self.p == 2 or not g:
            norm = g.norm()
            return Ascent(g, tensors.reciprocal(norm + self.epsilon if self.epsilon else norm))
        peak = tensors.largest(g.values, g.params)
        if self.p == 1:
            # Several weights with the same largest gradient share the radius.
            d = g.map(lambda x: torch.where(x.abs() == peak.to(x.device), x.sgn(), 0))
            return Ascent(d, tensors.reciprocal(d.dot(d)), disposable=True)
        if math.isinf(self.p):
            return Ascent(g.map(torch.sgn), torch.ones_like(peak), disposable=True)
        # Powers of |g| / max|g| neither overflow nor vanish, and the factor cancels.
        q = self.p / (self.p - 1)
        inverse = tensors.reciprocal(peak, torch.finfo(torch.float32).tiny)
        d = g.map(lambda x: x.sgn() * (x.abs() * inverse.to(x.device)).pow_(q - 1))
        q_norm_to_q = d.dot(g) * inverse
        return Ascent(d, tensors.reciprocal(q_norm_to_q.pow(1 / self.p)), disposable=True)


@dataclass(frozen=True, repr=False)
class ProjectedAscent(Perturbation):
    """Several steps of gradient ascent, each projected back into the ball (appendix C.6).

    ``ε_0 = 0`` and ``ε_{k+1} = Π_ρ(ε_k + ρ g_k / ‖g_k‖)``, where ``g_k`` is the gradient at ``w + ε_k`` and ``Π_ρ``
    scales vectors longer than ``ρ`` back to the ball. The paper does not print its inner step; with this one,
    ``steps=1`` is SAM.

    Args:
        rho (float | Schedule): Radius ``ρ``. Default: ``0.05``.
        steps (int): Number of ascent steps; each takes a gradient. Default: ``2``.
    """

    steps: PositiveInt = 2

    def ascend(self, step: Step) -> Ascent:
        """``ε_n / ρ``, so in units of the radius."""
        g = step.gradient
        scale = tensors.reciprocal(g.norm())
        if self.steps == 1 or not g:
            return Ascent(g, scale)
        epsilon, one = step.scratch().mul_(scale), torch.ones_like(scale)
        for _ in range(self.steps - 1):
            _climb(epsilon, step.at(Ascent(epsilon, one)).gradient)
        return Ascent(epsilon, one, disposable=True)


def _climb(epsilon: Vector, g: Vector) -> None:
    """``ε = Π(ε + g / ‖g‖)``, in units of the radius."""
    epsilon.add_(g, tensors.reciprocal(g.norm()))
    epsilon.mul_(tensors.reciprocal(epsilon.norm().clamp_min(1.0)))


@dataclass(frozen=True, repr=False)
class SharpGradient(Descent):
    """The gradient ``g_s`` at the perturbed weights on a sharp step, the plain ``g`` on a flat one."""


@dataclass(frozen=True, repr=False)
class SecondOrder(Descent):
    """The exact gradient of ``L(w + ε(w))``, with the term that SAM drops (appendix C.4).

    ``g_s + (ρ/‖g‖) H v``, where ``v = g_s - ⟨ĝ, g_s⟩ ĝ``, ``ĝ = g / ‖g‖`` and ``H`` is the Hessian at ``w``. A finite
    difference approximates the product, ``H v ≈ (∇L(w + h v) - g) / h``, and costs a third gradient. Its length
    ``h ‖v‖ = √δ (1 + ‖w‖)``, with ``δ`` the relative precision of the weights, balances rounding errors against
    higher-order derivatives. In half precision the term is mostly rounding error.
    """

    reads_gradient: ClassVar[bool] = True

    def sharp(self, step: Step, g_s: Vector) -> Update:
        """``g_s + (∇L(w + h u) - g) / h`` with ``u = (ρ/‖g‖) v``."""
        g, inverse = step.gradient, tensors.reciprocal(step.gradient.norm())
        u = step.epsilon(Ascent(g_s, inverse))
        u.add_(g, -g.dot(u) * inverse * inverse)
        weights = step.weights(u.params)
        precision = max(torch.finfo(w.dtype).eps for w in weights)
        h = math.sqrt(precision) * (1 + tensors.norm(weights, u.params)) * tensors.reciprocal(u.norm())
        beside = step.at(Ascent(u, h, disposable=True, absolute=True)).gradient
        return Update((beside - g).mul_(tensors.reciprocal(h)).add_(g_s))

    def conflict(self, others: Parts) -> str | None:
        """Refuse other perturbations: the term is the derivative of ``ε(w)`` in the Euclidean ball."""
        found = others.perturbation
        euclidean = isinstance(found, PNorm) and found.p == 2 and not found.epsilon
        return None if euclidean else f"with {found!r}: its term holds for PNorm(p=2) only"


@dataclass(frozen=True, repr=False)
class SAM(Method):
    """Sharpness-aware minimization (`Foret et al., 2021 <https://arxiv.org/abs/2010.01412>`_).

    **Idea.** Minimise the highest loss in a ball around the weights instead of the loss at the weights. The optimizer
    then settles in a flat minimum, where the loss is low in the whole neighbourhood, and which generalises better.

    **Equation.** ``w ← w - η ∇L(w + ε)`` with ``ε = ρ g / ‖g‖`` and ``g = ∇L(w)`` on the same mini-batch
    (in the p-norm: `PNorm`; with several ascent steps: `ProjectedAscent`; with the second-order term: `SecondOrder`).

    **Cost.** 2 gradients per sharp step, ``1 + 1/interval`` on average; with ``steps=n``, n more than a plain step. No
    memory between steps; during a sharp step one copy of the parameters, two with several ascent steps. The
    second-order term takes a third gradient and four copies. ``m`` splits the passes into smaller ones and takes one
    more copy.

    **BatchNorm** needs no recalibration: the first pass updates its statistics, on whole batches at the clean weights.
    With ``ascent_fraction`` that pass sees part of each batch, and recalibration helps: `sam_algos.recalibrate`.

    **Use it** when accuracy matters more than time, above all with noisy labels or little data. Set ``interval`` when
    time matters as well.

    Args:
        rho (float | Schedule): Radius of the perturbation. Default: ``0.05``, "often satisfactory" (the paper,
            section 3.1; it tunes over 0.01, 0.02, 0.05, 0.1, 0.2, 0.5). Raise it with label noise.
        interval (int): Sharp steps are those with ``t % interval == 0``. Default: ``1``, as in the paper.
        p (float): Order of the norm of the ball. Default: ``2.0``, "typically optimal" (the paper, appendix C.5).
        steps (int): Ascent steps, each with its own gradient; more than one requires the Euclidean ball (``p=2``).
            Default: ``1`` (the paper: 1, 2, 3 and 5 differ little, appendix C.6).
        second_order (bool): Add the term of the gradient that SAM drops, for study; requires ``p=2`` and ``steps=1``.
            Default: ``False`` (the paper: with it, test error is higher, appendix C.4).
        m (int, optional): Climb in groups of ``m`` consecutive samples, each along its own gradient (`Groups`): the
            paper's m-sharpness on one device. Not for models with BatchNorm. Default: ``None``, the batch as a whole
            (the paper, section 4.1: smaller ``m`` generalises better).
        epsilon (float): Added to ``‖g‖``: ``ε = ρ g / (‖g‖ + epsilon)``; requires ``p=2`` and ``steps=1``. Composer has
            the same option, with default ``1e-12``. Default: ``0.0``, as in the paper; a zero gradient moves nothing
            even so.

    Raises:
        ValueError: If an argument is outside its range; if ``p`` is not 2 with several ascent steps; if ``epsilon`` is
            combined with another ball or several ascent steps; or if ``second_order`` is combined with any of these,
            ``epsilon`` or ``m``.

    Example:
        >>> import torch
        >>> from sam_algos import SAM
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = SAM(rho=0.1).wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
        >>> loss = optimizer.step(lambda: model(torch.ones(4, 2)).square().mean(1))
        >>> optimizer.metrics["sam/applied"]
        1.0
    """

    rho: Radius = 0.05
    interval: PositiveInt = 1
    p: NormOrder = 2.0
    steps: PositiveInt = 1
    second_order: bool = False
    m: PositiveInt | None = None
    epsilon: NonNegative = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        """Check the arguments, and that several ascent steps use the Euclidean ball."""
        if self.steps != 1 and self.p != 2:
            raise ValueError(f"SAM(p={self.p!r}): p must be 2 with steps={self.steps!r}.")
        if self.epsilon and (self.p, self.steps) != (2, 1):
            others = f"p={self.p!r}, steps={self.steps!r}"
            raise ValueError(f"SAM(epsilon={self.epsilon!r}): epsilon must be 0 with {others}.")
        super().__post_init__()

    def parts(self) -> Parts:
        """Every ``interval`` steps, the ball, the sharp gradient with or without its second-order term."""
        ball = PNorm(self.rho, self.p, epsilon=self.epsilon)
        if self.steps > 1:
            ball = ProjectedAscent(self.rho, self.steps)
        descent = SecondOrder() if self.second_order else SharpGradient()
        return Parts(Interval(self.interval), ball, descent, WholeBatch() if self.m is None else Groups(self.m))
