"""A method composed of parts that you choose."""

from __future__ import annotations

from dataclasses import dataclass

from sam_algos.method import Method
from sam_algos.methods.sam import Interval, PNorm, SharpGradient
from sam_algos.parts import Descent, Parts, Perturbation, Policy, Samples, WholeBatch

__all__ = ["SharpnessAware"]


@dataclass(frozen=True, repr=False)
class SharpnessAware(Method):
    """Any combination of parts.

    **Idea.** When a step is sharp, how the weights climb, which gradient the optimizer gets and which samples each pass
    sees are independent choices; see `sam_algos.core.parts`. The named methods are such combinations, and
    ``SharpnessAware()`` is SAM.

    **Equation.** ``w ← w - η descent(g, ∇L(w + ε))`` on steps that the policy makes sharp, ``w ← w - η descent(g)``
    on the others.

    **Cost.** The gradients that its parts read, logged as ``sam/gradients``. Each part documents its memory.

    **Use it** for a combination that has no name.

    Args:
        policy (Policy): When a step is sharpness-aware. Default: ``Interval(k=1)``.
        perturbation (Perturbation): How the weights climb. Default: ``PNorm(rho=0.05, p=2.0)``.
        descent (Descent): What gradient the base optimizer gets. Default: ``SharpGradient()``.
        samples (Samples): Which samples each pass runs on. Default: ``WholeBatch()``.

    Raises:
        ValueError: If an argument is not a part of its kind, or two parts exclude one another.

    Example:
        >>> from sam_algos import Adaptive, GradientNorm, Reuse, SharpnessAware
        >>> SharpnessAware(policy=GradientNorm(lambda_2=2.0), perturbation=Adaptive(rho=0.5), descent=Reuse())
        ... # doctest: +ELLIPSIS
        SharpnessAware(policy=GradientNorm(...), perturbation=Adaptive(...), descent=Reuse(...), samples=WholeBatch())
    """

    policy: Policy = Interval()  # noqa: RUF009  (parts are immutable)
    perturbation: Perturbation = PNorm()  # noqa: RUF009
    descent: Descent = SharpGradient()  # noqa: RUF009
    samples: Samples = WholeBatch()  # noqa: RUF009

    def parts(self) -> Parts:
        """The parts given."""
        return Parts(self.policy, self.perturbation, self.descent, self.samples)
