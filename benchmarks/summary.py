"""From measurements to numbers: quartiles, ratios of steps of the same round, confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

SHARP = "SAM(interval=1)"
PEERS = ("Composer's SAM(interval=1)", "pytorch_optimizer's SAM")
"""The contenders whose step is the same as that of `SHARP`, this package's."""

AGREEMENT = 0.01
"""How far from 1 the ratio of two equal implementations may be before nothing is concluded."""

Columns = dict[str, list[float]]
"""What was measured of one contender: ``wall``, ``cpu``, ``passes`` and more, with one entry a round."""


class Quartiles(NamedTuple):
    """The middle half of some values."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quartiles:
        """The quartiles of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))

    @classmethod
    def mixed(cls, values: Sequence[float], kinds: Sequence[float]) -> Quartiles:
        """The quartiles of each kind of step, averaged by how many steps are of that kind.

        Plain and sharp steps take very different times: their common median would be that of either one
        and not the cost of a step.
        """
        total = cls(0.0, 0.0, 0.0)
        for kind in set(kinds):
            chosen = [value for value, its_kind in zip(values, kinds, strict=True) if its_kind == kind]
            share = len(chosen) / len(kinds)
            total = cls(*(t + share * q for t, q in zip(total, cls.of(chosen), strict=True)))
        return total

    def scaled(self, factor: float) -> Quartiles:
        """All three times ``factor``."""
        return Quartiles(*(factor * value for value in self))


def ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """``a / b``, round by round: what drifts from round to round cancels."""
    return [x / y for x, y in zip(a, b, strict=True)]


def compare(columns: Columns, plain: Columns, floor: Columns) -> dict[str, Any]:
    """The numbers of one contender.

    Args:
        columns: What was measured of it.
        plain: The same of the plain optimizer in the same rounds.
        floor: The same of two closures and one base step, the least that a sharp step takes.

    Returns:
        dict: ``gradients`` per step; quartiles of ``ms`` and ``cpu_ms`` per step and of the ``ratio`` and
        ``cpu_ratio`` to a plain step; ``over_floor`` and ``cpu_over_floor``, medians over the steps with two
        passes, None where there are none.
    """
    passes = columns["passes"]
    shown: dict[str, Any] = {"n": len(passes), "gradients": statistics.fmean(passes)}
    for prefix, clock in (("", "wall"), ("cpu_", "cpu")):
        seconds = columns[clock]
        shown[f"{prefix}ms"] = list(Quartiles.mixed(seconds, passes).scaled(1e3))
        shown[f"{prefix}ratio"] = list(Quartiles.mixed(ratios(seconds, plain[clock]), passes))
        over = [r - 1 for r, p in zip(ratios(seconds, floor[clock]), passes, strict=True) if p == 2]
        shown[f"{prefix}over_floor"] = statistics.median(over) if over else None
    if "peak" in columns:
        shown["peak_mb"] = max(columns["peak"]) / 1e6
    return shown


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The confidence interval of a median, which assumes nothing of how the values are spread.

    Args:
        values: At least one.
        level: Its probability; fewer than six values cannot give 0.95, and their whole range is the answer.

    Returns:
        tuple: Two of the values.
    """
    from scipy.stats import binom  # scikit-learn brings it

    ordered = sorted(values)
    rank = max(0, int(binom.ppf((1 - level) / 2, len(ordered), 0.5)) - 1)
    return ordered[rank], ordered[-1 - rank]


def agrees(ratio: float) -> bool:
    """Whether two measurements of the same thing agree well enough to conclude anything."""
    return abs(ratio - 1) <= AGREEMENT


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None]:
    """Mean and half width of its confidence interval, by Student's t.

    Args:
        values: At least one.
        level: Its probability.

    Returns:
        tuple: The half width is None for a single value.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    from scipy.stats import t  # scikit-learn brings it

    quantile = float(t.ppf((1 + level) / 2, len(values) - 1))
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))
