"""Policies that spend a given cost on the steps whose gradient is large; they are no paper's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

from sam_algos.parts import Decision, Memory, Policy, Positive, Probability, Step, UnitInterval

__all__ = ["TargetFraction", "TargetOverhead"]

TOLERANCE = 0.01
"""How far the fraction of sharp steps may be from what is due."""

MOST = 0.99
"""The largest fraction of sharp steps that time can buy."""

_NORMAL = NormalDist()
_INITIAL: Memory = {"mean": 0.0, "variance": 0.0, "ahead": 0.0, "since": None, "index": 0, "sharp": 0}


def _decide(step: Step, fraction: float, delta: float) -> Decision:
    """Sharp where ``log ‖g‖²`` is among the largest of its recent past, as many as make ``fraction`` come out."""
    if not 0 < step.gradient_norm < math.inf:
        return Decision(False)
    y = 2 * math.log(step.gradient_norm)
    last = step.memory
    if last["since"] is None:
        last = {**_INITIAL, "mean": y, "since": step.index, "index": step.index, "sharp": step.sharp}
    mean = last["mean"] + (1 - delta) * (y - last["mean"])  # to the last bit y where all were
    variance = delta * last["variance"] + (1 - delta) * (y - mean) * (y - mean)
    # By the counts of the loop: steps whose decision was not remembered are in them.
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
    """Sharp where the gradient norm is large for its recent past, on a given fraction ``f`` of the steps.

    With ``y = log ‖g‖²``, each step first updates ``μ ← δ μ + (1-δ) y`` and ``σ² ← δ σ² + (1-δ) (y - μ)²`` as
    `GradientNorm` does, from ``μ = y`` and ``σ² = 0`` at the first step. Step ``t`` is sharp iff ``y ≥ μ + c σ``, where
    a normal ``y`` exceeds ``μ + c σ`` with probability::

        p = f - (n - f t) / max(1, (t + 1) / 100)

    and ``n`` of the ``t`` steps before it were sharp: never if ``p ≤ 0``, always if ``p ≥ 1``. So a sharp step is one
    with ``n - f t < f max(1, (t + 1) / 100)``, a plain one the converse, and whatever the gradients are, the fraction
    after ``t`` steps **is within max(1 / t, 1 %) of the target**: within 1 % from the hundredth step on. A higher
    ``y`` than the distribution's is asked for where too many steps were sharp, and the room to wait for large gradients
    grows with ``t``: of independent draws it takes nearly the largest (with ``f = 0.2`` and ``δ = 0.9``, 0.93 of what
    the largest are above the average).

    ``n`` counts from the policy's first step, also in a checkpoint of another method. Where the target changes on a
    resume, it holds for the steps that follow; nothing is made up for. A gradient that is zero or not finite gives a
    plain step, which counts.

    Args:
        fraction (float): Fraction ``f`` of sharp steps, in [0, 1]; 0 is training without the method, 1 is sharp on
            every step. Default: ``0.2``, what the AE-SAM paper reports for AE-LookSAM.
        delta (float): Forgetting factor ``δ`` in [0, 1). Default: ``0.9`` (AE-SAM's).
    """

    reads_gradient: ClassVar[bool] = True
    reads_scale: ClassVar[bool] = True  # the scale may change from step to step

    fraction: Probability = 0.2
    delta: UnitInterval = 0.9

    @property
    def never(self) -> bool:
        """With ``fraction=0``."""
        return self.fraction == 0

    def initial(self) -> Memory:
        """Nothing counted yet."""
        return _INITIAL

    def decide(self, step: Step) -> Decision:
        """Among the largest ``p``."""
        return _decide(step, self.fraction, self.delta)


@dataclass(frozen=True, repr=False)
class TargetOverhead(Policy):
    """Sharp where the gradient norm is large for its recent past, for a given share of time over plain training.

    The loop measures what plain and sharp steps take, ``s₀`` and ``s₁`` seconds, and what of a plain step is the
    method's own, ``h`` (`Step.seconds`: medians of the latest 31, averaged over processes). Training
    without the method takes ``b = s₀ - h`` a step, so the target overhead ``o`` pays for the fraction ::

        f = (o b - h) / (s₁ - s₀)

    of sharp steps, at most 0.99 of them, as one plain step in a hundred keeps the comparison alive. Which steps these
    are is `TargetFraction`'s choice: after ``t`` steps their number differs from the sum of the ``f`` by no more than
    ``max(1, t / 100)``, and by the first three sharp steps, which are taken as soon as plain ones have been measured:
    one to warm up and two to be measured.

    Where the budget is smaller than the method's own share, ``f`` is 0: no step is sharp, and the overhead is above the
    target. Where sharp steps cost no more than the budget, ``f`` is 0.99. What could not be spent lapses. Both show in
    what is logged: ``sam/target_fraction`` is ``f``, ``sam/overhead`` what all steps so far would cost at the present
    ``s₀``, ``s₁`` and ``h``, as a share of ``b``. The times are estimates: on a busy machine they, and what they pay
    for, fluctuate.

    Args:
        overhead (float): Target overhead ``o``, as a share of plain training's time, > 0. Default: ``0.1``.
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
        """Among as many of the largest as the budget pays for."""
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
