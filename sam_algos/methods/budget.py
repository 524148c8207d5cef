"""Policies that spend a given budget on the steps with the largest gradients. They are this package's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

from sam_algos.parts import Decision, Memory, Policy, Positive, Probability, Step, UnitInterval

__all__ = ["TargetFraction", "TargetOverhead"]

TOLERANCE = 0.01
"""How far the fraction of sharp steps may be from its target."""

MOST = 0.99
"""The largest fraction of sharp steps that a time budget can buy."""

_NORMAL = NormalDist()
_INITIAL: Memory = {"mean": 0.0, "variance": 0.0, "ahead": 0.0, "since": None, "index": 0, "sharp": 0}


def _decide(step: Step, fraction: float, delta: float) -> Decision:
    """Sharp where ``log ‖g‖²`` is among the largest of recent steps, with the threshold that yields ``fraction``."""
    if not 0 < step.gradient_norm < math.inf:
        return Decision(False)
    y = 2 * math.log(step.gradient_norm)
    last = step.memory
    if last["since"] is None:
        last = {**_INITIAL, "mean": y, "since": step.index, "index": step.index, "sharp": step.sharp}
    mean = last["mean"] + (1 - delta) * (y - last["mean"])  # exactly y if all values so far were y
    variance = delta * last["variance"] + (1 - delta) * (y - mean) * (y - mean)
    # Use the loop's counts: they include steps whose decision was not remembered.
    ahead = last["ahead"] + (step.sharp - last["sharp"]) - fraction * (step.index - last["index"])
    p = fraction - ahead / max(1.0, TOLERANCE * (step.index - last["since"] + 1))
    if 0 < p < 1:
        threshold = mean - _NORMAL.inv_cdf(p) * math.sqrt(variance)
    else:  # never, or always
        threshold = math.nextafter(y, math.inf) if p <= 0 else y
    numbers = {"mean": mean, "variance": variance, "ahead": ahead}
    counts = {"since": last["since"], "index": step.index, "sharp": step.sharp}
    return Decision(y >= threshold, {**numbers, **counts}, {"statistic": y, "threshold": threshold})


@dataclass(frozen=True, repr=False)
class TargetFraction(Policy):
    """Sharp where the gradient norm is large compared with recent steps, on a given fraction ``f`` of the steps.

    With ``y = log ‖g‖²``, each step first updates ``μ ← δ μ + (1-δ) y`` and ``σ² ← δ σ² + (1-δ) (y - μ)²`` as
    `GradientNorm` does. At the first step ``μ = y`` and ``σ² = 0``. Step ``t`` is sharp iff ``y ≥ μ + c σ``, where
    ``c`` is chosen so that a normally distributed ``y`` exceeds ``μ + c σ`` with probability::

        p = f - (n - f t) / max(1, (t + 1) / 100)

    Here ``n`` is the number of sharp steps among the ``t`` before it. The step is never sharp if ``p ≤ 0`` and always
    sharp if ``p ≥ 1``. So a sharp step has ``n - f t < f max(1, (t + 1) / 100)``, and a plain step has
    ``n - f t > (f - 1) max(1, (t + 1) / 100)``. Whatever the gradients are, the fraction after ``t`` steps **is within
    max(1 / t, 1 %) of the target**: within 1 % from the hundredth step on. If too many steps were sharp, the threshold
    rises. The room to wait for large gradients grows with ``t``: from independent draws the policy picks nearly the
    largest (with ``f = 0.2`` and ``δ = 0.9``, their excess over the average is 0.93 of the largest possible).

    ``n`` counts from the policy's first step, also when resuming from a checkpoint of another method. If you change the
    target on a resume, it applies to the steps that follow; earlier steps are not compensated for. A gradient that is
    zero or not finite gives a plain step, which counts.

    Args:
        fraction (float): Fraction ``f`` of sharp steps, in [0, 1]; 0 trains without the method, 1 makes every step
            sharp. Default: ``0.2``, the fraction that the AE-SAM paper reports for AE-LookSAM.
        delta (float): Forgetting factor ``δ`` in [0, 1). Default: ``0.9`` (AE-SAM's).
    """

    reads_gradient: ClassVar[bool] = True
    reads_scale: ClassVar[bool] = True  # the scale may change from step to step

    fraction: Probability = 0.2
    delta: UnitInterval = 0.9

    @property
    def never(self) -> bool:
        """True with ``fraction=0``."""
        return self.fraction == 0

    def initial(self) -> Memory:
        """Nothing counted yet."""
        return _INITIAL

    def decide(self, step: Step) -> Decision:
        """Sharp if the gradient norm is among the largest ``p``."""
        return _decide(step, self.fraction, self.delta)


@dataclass(frozen=True, repr=False)
class TargetOverhead(Policy):
    """Sharp where the gradient norm is large compared with recent steps, within a given time overhead.

    The loop measures the seconds that plain and sharp steps take, ``s₀`` and ``s₁``, and the seconds ``h`` of a plain
    step that the method itself takes (`Step.seconds`: medians of the latest 31, averaged over processes). Training
    without the method takes ``b = s₀ - h`` per step, so the target overhead ``o`` pays for this fraction of sharp
    steps::

        f = (o b - h) / (s₁ - s₀)

    ``f`` is at most 0.99, so that one plain step in a hundred keeps ``s₀`` up to date. `TargetFraction` chooses which
    steps are sharp. After ``t`` steps their number differs from the sum of the ``f`` by at most ``max(1, t / 100)``,
    apart from the first three sharp steps: they are taken as soon as plain steps have been measured, one to warm up and
    two to be measured.

    If the budget is smaller than the method's own time, ``f`` is 0: no step is sharp, and the overhead is above the
    target. If sharp steps cost no more than the budget, ``f`` is 0.99. Unspent budget is lost. The log shows both:
    ``sam/target_fraction`` is ``f``, and ``sam/overhead`` is what all steps so far would cost at the present ``s₀``,
    ``s₁`` and ``h``, as a fraction of ``b``. The times are estimates: on a busy machine they fluctuate, and ``f`` with
    them.

    Args:
        overhead (float): Target overhead ``o``, as a fraction of plain training's time, > 0. Default: ``0.1``.
        delta (float): Forgetting factor ``δ`` in [0, 1). Default: ``0.9`` (AE-SAM's).
    """

    reads_gradient: ClassVar[bool] = True
    reads_scale: ClassVar[bool] = True
    reads_seconds: ClassVar[bool] = True

    overhead: Positive = 0.1
    delta: UnitInterval = 0.9

    def initial(self) -> Memory:
        """Nothing counted yet."""
        return _INITIAL

    def decide(self, step: Step) -> Decision:
        """Sharp if the gradient norm is among the largest that the budget pays for."""
        plain, sharp, own = step.seconds
        if math.isnan(sharp):
            decision = _decide(step, 0.0, self.delta)
            return decision._replace(sharp=not math.isnan(plain)) if decision.remember else decision
        without = plain - own
        affordable = (self.overhead * without - own) / (sharp - plain) if sharp > plain else math.inf
        fraction = min(max(affordable, 0.0), MOST)
        taken = step.sharp / max(1, step.index)
        overhead = (own + taken * (sharp - plain)) / without
        decision = _decide(step, fraction, self.delta)
        return decision._replace(log={**decision.log, "target_fraction": fraction, "overhead": overhead})
