"""From measurements to numbers: quartiles, ratios of steps of the same round, confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

PLAIN, AGAIN, FUSED, FLOOR = "plain", "plain, again", "plain, fused=True", "floor"
TWICE = "plain, twice the epochs"
SHARP = "SAM(interval=1)"
PEERS = ("Composer's SAM(interval=1)", "pytorch_optimizer's SAM")
"""The contenders whose step is the same as that of `SHARP`, this package's."""

PHASES = ("pass", "replay", "norm", "ascent", "displace", "restore", "descent", "base step")
"""The ranges of a step. In ``replay`` random streams and buffers are recorded and rewound, in ``descent`` the final
gradient is made."""
REST = "rest"

AGREEMENT = 0.01
"""How far from 1 the ratio of two equal implementations may be before nothing is concluded."""

Columns = dict[str, list[float]]
"""What was measured of one contender: ``wall``, ``cpu``, ``gradients`` and more, with one entry a round."""


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


def ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """``a / b``, round by round: what drifts from round to round cancels."""
    return [x / y for x, y in zip(a, b, strict=True)]


def compare(columns: Columns, plain: Columns, floor: Columns) -> dict[str, Any]:
    """The numbers of one contender, beside the plain optimizer and the floor in the same rounds.

    Returns:
        dict: ``gradients`` per step; quartiles of ``ms`` per step and of the ``ratio`` to a plain step; ``over_floor``,
        the median over the steps with two gradients, None where there are none; on a GPU ``peak_mb``.
    """
    gradients = columns["gradients"]
    over = [r - 1 for r, n in zip(ratios(columns["wall"], floor["wall"]), gradients, strict=True) if n == 2]
    return {
        "gradients": statistics.fmean(gradients),
        "ms": Quartiles.mixed([1e3 * seconds for seconds in columns["wall"]], gradients),
        "ratio": Quartiles.mixed(ratios(columns["wall"], plain["wall"]), gradients),
        "over_floor": statistics.median(over) if over else None,
        **({"peak_mb": max(columns["peak"]) / 1e6} if "peak" in columns else {}),
    }


def summarize_cost(table: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one workload in one mode.

    Returns:
        dict: ``rows`` by contender (see `compare`), ``rounds``, ``floor``, its ratio to a plain step, ``a_a``, the
        ratio of two equal contenders, with ``conclusive`` whether it is 1, and ``against``, by peer the median ratio of
        this package's SAM step to the peer's and its 95 % interval.
    """
    samples = table["samples"]
    plain, floor = samples[PLAIN], samples[FLOOR]
    rows = {name: {**table["contenders"][name], **compare(columns, plain, floor)} for name, columns in samples.items()}
    against = {peer: ratios(samples[SHARP]["wall"], samples[peer]["wall"]) for peer in PEERS if peer in samples}
    return {
        "rows": rows,
        "rounds": len(plain["wall"]),
        "floor": rows[FLOOR]["ratio"].median,
        "a_a": rows[AGAIN]["ratio"].median,
        "conclusive": agrees(rows[AGAIN]["ratio"].median),
        "against": {peer: (statistics.median(ours), *median_interval(ours)) for peer, ours in against.items()},
    }


def summarize_phases(table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By contender, median milliseconds of the ``step``, of a ``profiled`` one and of the latter's ``phases``."""
    return {
        name: {
            "step": 1e3 * statistics.median(table["samples"][name]["wall"]),
            "profiled": 1e3 * statistics.median(map(sum, zip(*ranges.values(), strict=True))),
            "phases": {phase: 1e3 * statistics.median(seconds) for phase, seconds in ranges.items()},
        }
        for name, ranges in table["ranges"].items()
    }


def summarize_accuracy(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The numbers of every variant of a recipe.

    Returns:
        dict: ``target``, the mean over seeds of the plain optimizer's best accuracy, None where it was not trained,
        and ``rows`` by variant: ``n``; mean and half width of the 95 % interval of ``accuracy`` after the last step,
        of the ``best`` on the way and of ``seconds``; ``gradients`` per step, and ``work``, those of the whole
        training, the first variant's being 1; ``to_target``, the median seconds of those seeds that ``reached`` it.
    """
    by_variant: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_variant.setdefault(run["variant"], []).append(run)
    best = {name: [max(accuracy for _, accuracy in run["curve"]) for run in own] for name, own in by_variant.items()}
    target = statistics.fmean(best[PLAIN]) if PLAIN in best else None
    work = {name: statistics.fmean(run["gradients"] * run["steps"] for run in own) for name, own in by_variant.items()}
    rows = {}
    for name, own in by_variant.items():
        times = [seconds for run in own if (seconds := _time_to(target, run["curve"])) is not None]
        rows[name] = {
            "n": len(own),
            "accuracy": interval([run["accuracy"] for run in own]),
            "best": interval(best[name]),
            "seconds": interval([run["seconds"] for run in own]),
            "gradients": statistics.fmean(run["gradients"] for run in own),
            "work": work[name] / next(iter(work.values())),
            "to_target": statistics.median(times) if times else None,
            "reached": len(times),
        }
    return {"target": target, "rows": rows}


def _time_to(target: float | None, curve: Sequence[Sequence[float]]) -> float | None:
    return next((seconds for seconds, accuracy in curve if target is not None and accuracy >= target), None)


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The confidence interval of a median, by the sign test; the whole range of fewer than six values."""
    n, below, rank = len(values), 0.0, -1
    while below <= (1 - level) / 2 and rank < n // 2:  # the binomial distribution at one half
        rank += 1
        below += math.comb(n, rank) / 2**n
    ordered, rank = sorted(values), max(0, rank - 1)
    return ordered[rank], ordered[-1 - rank]


def agrees(ratio: float) -> bool:
    """Whether two measurements of the same thing agree well enough to conclude anything."""
    return abs(ratio - 1) <= AGREEMENT


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None]:
    """Mean and half width of its confidence interval, by Student's t; None for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    from scipy.stats import t  # scikit-learn brings it

    quantile = float(t.ppf((1 + level) / 2, len(values) - 1))
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))
