"""Statistics of the measurements: quartiles, ratios of steps in the same round, confidence intervals."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.study import FRESH, Job, Study, scores

PLAIN, AGAIN, FUSED, FLOOR = "plain", "plain, again", "plain, fused=True", "floor"
SHARP = "SAM(interval=1)"
SAM_BY_HAND, MOMENTUM_BY_HAND = "SAM in fifteen lines", "Momentum-SAM in fifteen lines"
PEERS = {
    "Composer's SAM(interval=1)": SHARP,
    "pytorch_optimizer's SAM": SHARP,
    SAM_BY_HAND: SHARP,
    MOMENTUM_BY_HAND: "MomentumSAM()",
}
"""Contenders from elsewhere, with the name of this package's contender that takes the same step."""

PHASES = ("pass", "replay", "norm", "ascent", "displace", "restore", "descent", "base step")
"""The ranges of a step. ``replay`` records and rewinds random streams and buffers; ``descent`` computes the final
gradient."""
REST = "rest"

AGREEMENT = 0.01
"""Largest deviation from 1 of the ratio of two equal implementations; beyond it there is no verdict."""

Columns = dict[str, list[float]]
"""The measurements of one contender: ``wall``, ``cpu``, ``gradients`` and more, with one entry per round."""


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
        """The quartiles of each kind of step, averaged with the kinds' frequencies as weights.

        Plain and sharp steps take very different times: a common median would fall on one of the kinds, and would not
        show the average cost of a step.
        """
        total = cls(0.0, 0.0, 0.0)
        for kind in set(kinds):
            chosen = [value for value, its_kind in zip(values, kinds, strict=True) if its_kind == kind]
            share = len(chosen) / len(kinds)
            total = cls(*(t + share * q for t, q in zip(total, cls.of(chosen), strict=True)))
        return total


def ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """``a / b``, round by round, so that drift between rounds cancels."""
    return [x / y for x, y in zip(a, b, strict=True)]


def compare(columns: Columns, plain: Columns, floor: Columns, clock: str = "wall") -> dict[str, Any]:
    """The statistics of one contender, against the plain optimizer and the floor in the same rounds.

    Args:
        columns: The contender's measurements.
        plain: The plain optimizer's measurements.
        floor: The floor's measurements.
        clock: The column with the time of a step.

    Returns:
        dict: ``gradients`` per step; quartiles of ``ms`` per step and of the ``ratio`` to a plain step; ``over_floor``,
        the median excess over the floor of the steps with two gradients, None without such steps; on a GPU ``peak_mb``.
    """
    gradients = columns["gradients"]
    over = [r - 1 for r, n in zip(ratios(columns[clock], floor[clock]), gradients, strict=True) if n == 2]
    return {
        "gradients": statistics.fmean(gradients),
        "ms": Quartiles.mixed([1e3 * seconds for seconds in columns[clock]], gradients),
        "ratio": Quartiles.mixed(ratios(columns[clock], plain[clock]), gradients),
        "over_floor": statistics.median(over) if over else None,
        **({"peak_mb": max(columns["peak"]) / 1e6} if "peak" in columns else {}),
    }


def extra(columns: Columns, floor: Columns, unit: float) -> tuple[float, float, float] | None:
    """The extra cost of a sharp step over two passes and a base step: CPU time outside its passes, minus the floor's.

    Args:
        columns: The contender's measurements.
        floor: The floor's measurements.
        unit: CPU seconds of the unit, a norm and a write.

    Returns:
        tuple: Median and 95 % confidence interval over the steps with the most gradients; None if it was not measured.
    """
    if "outside" not in columns or "outside" not in floor:
        return None
    most = max(columns["gradients"])
    pairs = zip(columns["outside"], floor["outside"], columns["gradients"], strict=True)
    units = [(outside - least) / unit for outside, least, gradients in pairs if gradients == most]
    return (statistics.median(units), *median_interval(units))


def summarize_cost(table: dict[str, Any]) -> dict[str, Any]:
    """The statistics of one workload in one mode.

    Returns:
        dict: ``rows`` by contender (see `compare`; also `extra`, except for the baselines); the number of ``rounds``;
        ``floor``, the floor's ratio to a plain step; ``a_a``, the ratio of two equal contenders; ``conclusive``,
        whether that ratio is close enough to 1; ``against``, by peer the median ratio of this package's step to the
        peer's, with its 95 % confidence interval; and ``unit``, the CPU seconds of a norm and a write, None if not
        measured.
    """
    samples, clock = table["samples"], table.get("clock", "wall")
    unit = statistics.median(table["unit"]["cpu"]) if table.get("unit") else None
    plain, floor = samples[PLAIN], samples[FLOOR]
    rows = {
        name: {**table["contenders"][name], **compare(columns, plain, floor, clock)}
        for name, columns in samples.items()
    }
    for name, row in rows.items():
        if unit is not None and row["package"] != "torch":
            row["extra"] = extra(samples[name], floor, unit)
    against = {
        peer: ratios(samples[ours][clock], samples[peer][clock])
        for peer, ours in PEERS.items()
        if ours in samples and peer in samples
    }
    return {
        "rows": rows,
        "rounds": len(plain["wall"]),
        "floor": rows[FLOOR]["ratio"].median,
        "a_a": rows[AGAIN]["ratio"].median,
        "conclusive": agrees(rows[AGAIN]["ratio"].median),
        "unit": unit,
        "against": {peer: (statistics.median(ours), *median_interval(ours)) for peer, ours in against.items()},
    }


def summarize_phases(table: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By contender, median milliseconds of a ``step``, of a ``profiled`` step and of the ``phases`` of the latter."""
    return {
        name: {
            "step": 1e3 * statistics.median(table["samples"][name]["wall"]),
            "profiled": 1e3 * statistics.median(map(sum, zip(*ranges.values(), strict=True))),
            "phases": {phase: 1e3 * statistics.median(seconds) for phase, seconds in ranges.items()},
        }
        for name, ranges in table["ranges"].items()
    }


def summarize_study(settings: dict[str, Any], data: dict[str, Any]) -> list[dict[str, Any]]:
    """The statistics of every contender of a study at every length that has been confirmed.

    Returns:
        list: A row per contender and length. ``contender``, ``length`` and the ``chosen`` options; the mean
        ``validation`` accuracy of the choice, and whether this is the contender's ``best`` length; the test
        ``accuracy`` with fresh seeds, as mean and half width of the 95 % confidence interval; ``against``, the same for
        its difference from each baseline at the baseline's best length, seed by seed; mean ``gradients``, ``forwards``
        and ``cpu_seconds`` of the training, in units of the first baseline at its best length; the last epoch's
        ``train`` accuracy; the number ``n`` of seeds.
    """
    study = Study(**{key: value for key, value in settings.items() if key != "study"}, **data["study"])
    runs = {Job(*run["job"]): run for run in data["runs"]}
    accuracies = scores(data["runs"])
    rows = []
    for contender, length in itertools.product(study.contenders, study.lengths):
        if (trial := study.settled(contender, length, accuracies)) is None:
            continue
        own = [runs[job] for i in range(study.seeds) if (job := Job(contender, length, trial, FRESH + i)) in runs]
        if len(own) < 2:
            continue
        means = {key: statistics.fmean(run[key] for run in own) for key in ("gradients", "forwards", "cpu_seconds")}
        rows.append({
            "contender": contender, "length": length, "chosen": own[0]["chosen"], "n": len(own),
            "validation": study.validation(contender, length, trial, accuracies), "runs": own,
            "accuracy": interval([run["accuracy"] for run in own]), **means,
            "train": statistics.fmean(run["train_accuracy"] for run in own),
        })  # fmt: skip
    best = {row["contender"]: row for row in sorted(rows, key=lambda row: row["validation"])}
    first = best.get(study.baselines[0], {"gradients": 1.0, "cpu_seconds": 1.0})
    units = {"gradients": first["gradients"], "forwards": first["gradients"], "cpu_seconds": first["cpu_seconds"]}
    for row in rows:
        row["best"] = best[row["contender"]] is row
        row.update({key: row[key] / unit for key, unit in units.items()})
        row["against"] = {
            name: _difference(row["runs"], best[name]["runs"]) for name in study.baselines if name in best
        }
    return [{key: value for key, value in row.items() if key != "runs"} for row in rows]


def _difference(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> tuple[float, float | None]:
    """The mean of the differences seed by seed, and the half width of its confidence interval."""
    there = {Job(*run["job"]).seed: run["accuracy"] for run in theirs}
    both = [run["accuracy"] - there[seed] for run in ours if (seed := Job(*run["job"]).seed) in there]
    return interval(both) if both else (0.0, None)


def summarize_targets(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The statistics of every target.

    Returns:
        dict: By option and target: the number ``n`` of runs; the mean ``fraction`` of sharp steps at the end, and the
        mean ``early`` fraction at the hundredth step; the ``least`` and the ``most`` fraction from there on over all
        seeds; and ``overhead``, the extra time relative to the plain runs just before and after, as mean and half width
        of the 95 % confidence interval.
    """
    at = {(run["seed"], run["turn"]): run for run in runs}
    found: dict[str, list[dict[str, Any]]] = {}
    for (seed, turn), run in at.items():
        beside = [at.get((seed, turn + by), {}) for by in (-1, 1)]
        plain = [other["seconds"] for other in beside if other.get("variant") == PLAIN]
        if run["variant"] != PLAIN:
            overhead = [run["seconds"] / statistics.fmean(plain) - 1] if len(plain) == 2 else []
            found.setdefault(run["variant"], []).append({**run, "overhead": overhead})
    rows = {}
    for name, own in found.items():
        overheads = [value for run in own for value in run["overhead"]]
        means = {key: statistics.fmean(run[key] for run in own) for key in ("early", "fraction")}
        ends = {"least": min(run["least"] for run in own), "most": max(run["most"] for run in own)}
        rows[name] = {"n": len(own), **means, **ends, "overhead": interval(overheads) if overheads else None}
    return rows


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The confidence interval of a median, by the sign test; with fewer than six values their whole range."""
    n, below, rank = len(values), 0.0, -1
    while below <= (1 - level) / 2 and rank < n // 2:  # the binomial distribution at one half
        rank += 1
        below += math.comb(n, rank) / 2**n
    ordered, rank = sorted(values), max(0, rank - 1)
    return ordered[rank], ordered[-1 - rank]


def agrees(ratio: float) -> bool:
    """Whether two measurements of the same thing agree well enough for a verdict."""
    return abs(ratio - 1) <= AGREEMENT


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None]:
    """The mean and the half width of its confidence interval, by Student's t; the width is None for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    from scipy.stats import t  # installed with scikit-learn

    quantile = float(t.ppf((1 + level) / 2, len(values) - 1))
    return mean, quantile * statistics.stdev(values) / math.sqrt(len(values))
