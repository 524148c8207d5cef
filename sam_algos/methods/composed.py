"""A method composed of any parts."""

from __future__ import annotations

from dataclasses import dataclass

from sam_algos.algorithm import Method
from sam_algos.methods.sam import Interval, PNorm, SharpGradient
from sam_algos.parts import Descent, Parts, Perturbation, Policy

__all__ = ["SharpnessAware"]


@dataclass(frozen=True, repr=False)
class SharpnessAware(Method):
    """Any combination of parts.

    **Idea.** When, how and what are independent choices; see `sam_algos.parts`. The named methods are such
    combinations, and ``SharpnessAware()`` is SAM.

    **Equation.** ``w ← w - η descent(g, ∇L(w + ε))`` where the policy says so, ``w ← w - η descent(g)`` elsewhere.

    **Cost.** ``1 + f`` gradients per step, ``f`` the fraction of sharp steps; memory as its parts say.

    **Use it** for a combination that has no name.

    Args:
        policy (Policy): When a step is sharpness-aware. Default: ``Interval(k=1)``.
        perturbation (Perturbation): How the weights climb. Default: ``PNorm(rho=0.05, p=2.0)``.
        descent (Descent): What gradient the base optimizer gets. Default: ``SharpGradient()``.
        synchronize (bool): See `Method`. Default: ``False``.
        nonfinite (str): See `Method`. Default: ``'pass'``.
        ascent_fraction (float): See `Method`. Default: ``1.0``.

    Raises:
        ValueError: If an argument is not a part of its kind.

    Example:
        >>> from sam_algos import Adaptive, GradientNorm, Reuse, SharpnessAware
        >>> SharpnessAware(policy=GradientNorm(lambda_2=2.0), perturbation=Adaptive(rho=0.5), descent=Reuse())
        ... # doctest: +ELLIPSIS
        SharpnessAware(policy=GradientNorm(...), perturbation=Adaptive(...), descent=Reuse(...))
    """

    policy: Policy = Interval()  # noqa: RUF009  (parts are immutable)
    perturbation: Perturbation = PNorm()  # noqa: RUF009
    descent: Descent = SharpGradient()  # noqa: RUF009

    def parts(self) -> Parts:
        """The parts given."""
        return Parts(self.policy, self.perturbation, self.descent)
