"""Several trainings side by side: a table, a sentence that says what was seen, and a picture."""

from __future__ import annotations

import itertools
import math
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from sam_algos.recipes.results import Summary, read_metrics

_WIDTH = 60

_MEASURED = ("fraction", "steps", "gradients", "cpu_seconds", "train_seconds", "steady_seconds")
"""What `rows` takes from a summary as it is."""


@dataclass(frozen=True)
class Result:
    """One training.

    Args:
        method (str): The row of the recipe, or the method, that it was trained with.
        seed (int): Its seed.
        folder (Path): Where its metrics are, as ``metrics.jsonl``.
        summary (Summary): The sums of its metrics.
        title (str): The method's name in a sentence.
        decides (bool): Whether the method decides on each step if it is sharp.
        evaluated_on (str): What it was evaluated on, in words.
    """

    method: str
    seed: int
    folder: Path
    summary: Summary
    title: str
    decides: bool
    evaluated_on: str

    @property
    def value(self) -> float:
        """Its headline metric; NaN where none was logged."""
        return math.nan if self.summary.headline is None else self.summary.headline.value

    @property
    def sharp_fraction(self) -> float | None:
        """The fraction of sharp steps, None where nothing decides."""
        return self.summary.fraction if self.decides else None

    @property
    def shown(self) -> str:
        """Its outcome in a few words."""
        found = self.summary.headline
        return "not evaluated" if found is None else f"{found.name} {found.shown}"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Args:
        mean (float): The mean.
        half (float | None): Half the width of Student's 95 % confidence interval; None for a single value.
    """

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The estimate from one value for each seed."""
        if not all(map(math.isfinite, values)):
            return cls(math.nan, None)
        if len(values) < 2:
            return cls(values[0], None)
        half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
        return cls(statistics.fmean(values), float(half))

    def shown(self, digits: int, sign: str = "") -> str:
        """``79.4 ± 0.3``."""
        mean = f"{self.mean:{sign}.{digits}f}"
        return mean if self.half is None else f"{mean} ± {self.half:.{digits}f}"


@dataclass(frozen=True)
class Standing:
    """A method in the comparison.

    Args:
        method (str): As the recipe calls it.
        title (str): Its name in a sentence.
        value (Estimate): The metric.
        difference (Estimate): To the first method, paired by seed.
        gradients (float | None): All gradients of its trainings, relative to the first method.
        cpu_time (float | None): The CPU time of its steps, likewise; None on a GPU.
        time (float | None): The wall-clock time of its steps, likewise, each kind of step at its median.
        sharp_fraction (float | None): The fraction of sharp steps, None where nothing decides.
    """

    method: str
    title: str
    value: Estimate
    difference: Estimate
    gradients: float | None
    cpu_time: float | None
    time: float | None
    sharp_fraction: float | None


def rows(results: Iterable[Result]) -> list[dict[str, Any]]:
    """The results as plain values, one row for each training."""
    return [
        {
            "method": result.method,
            "seed": result.seed,
            "metric": result.summary.headline and result.summary.headline.name,
            "value": result.summary.headline and result.summary.headline.value,
            "sharp_fraction": result.sharp_fraction,
            **{name: getattr(result.summary, name) for name in _MEASURED},
            "folder": str(result.folder),
        }
        for result in results
    ]


def standings(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The table as plain values, one row for each method; see `Standing`."""
    found = [asdict(standing) for standing in _standings(results)]
    for estimate in (standing[name] for standing in found for name in ("value", "difference")):
        estimate["mean"] = estimate["mean"] if math.isfinite(estimate["mean"]) else None  # JSON has no NaN
    return found


def table(results: Sequence[Result]) -> str:
    """The table as text: a row for each method, means over its seeds, and what the columns mean.

    It is at most 60 columns wide, unless names are long.
    """
    first, *_ = found = _standings(results)
    digits = 1 if _is_accuracy(results) else 3
    on_cpu = all(standing.cpu_time is not None for standing in found)
    lines = [["method", _metric(results), f"vs {first.method}", "gradients", "CPU" if on_cpu else "time", "sharp"]]
    for one in found:
        costs = [one.gradients, one.cpu_time if on_cpu else one.time]
        lines.append([
            one.method, one.value.shown(digits), "" if one is first else one.difference.shown(digits, "+"),
            *("-" if cost is None else f"{cost:.2f}" for cost in costs),
            "" if one.sharp_fraction is None else f"{100 * one.sharp_fraction:.0f} %",
        ])  # fmt: skip
    columns = [column for column in zip(*lines, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    text = "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in zip(*columns, strict=True)
    )
    return f"{text}\n\n{_caption(results, on_cpu)}"


def conclusion(results: Sequence[Result]) -> str:
    """What was seen, in one sentence: the cheapest method whose gain exceeds its confidence interval, if any."""
    first, *others = _standings(results)
    if not all(math.isfinite(result.value) for result in results):
        return "Not every model was evaluated, so nothing can be said."
    if not others:
        return f"{first.title} was trained alone: there is nothing to compare it with."
    digits, sign, unit = (1, 1, "points") if _is_accuracy(results) else (3, -1, f"in {_metric(results)}")
    gains = {one: Estimate(sign * one.difference.mean, one.difference.half) for one in others}

    def compared(one: Standing) -> str:
        size = Estimate(abs(gains[one].mean), gains[one].half).shown(digits)
        way = "better" if gains[one].mean >= 0 else "worse"
        ratio = one.gradients or 1.0
        cost = "the same number of gradients" if abs(ratio - 1) < 0.005 else f"{ratio:.2f} times the gradients"
        return f"{one.title} is {size} {unit} {way} than {first.title} for {cost}"

    clear = [one for one, gain in gains.items() if gain.half is not None and gain.mean > gain.half]
    if clear:
        return f"{compared(min(clear, key=lambda one: (round(one.gradients or 0, 2), -gains[one].mean)))}."
    best = max(others, key=lambda one: gains[one].mean)
    if best.difference.half is None:
        return f"In a single run each, which is mostly noise, {compared(best)}; --seeds 5 adds confidence intervals."
    return f"No method is clearly better than {first.title}; of the others the best: {compared(best)}."


def draw(results: Sequence[Result], path: Path) -> Path:
    """Draw the metric against gradients, a point for each method; below it when adaptive methods took sharp steps.

    The path, which is also returned, may have any format that matplotlib writes.
    """
    from matplotlib.figure import Figure

    adaptive = [runs for runs in _by_method(results) if runs[0].decides and runs[0].summary.steps]
    heights = [3.6, *(1.5 for _ in adaptive)]
    figure = Figure(figsize=(7, sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    _draw_standings(axes[0], results)
    for axis, runs in zip(axes[1:], adaptive, strict=True):
        _draw_decisions(axis, runs)
    figure.savefig(path, dpi=150)
    return path


def _draw_standings(axis: Any, results: Sequence[Result]) -> None:
    found = _standings(results)
    for one, marker in zip(found, itertools.cycle("so^Dv<>p*h")):
        point, fill = (one.gradients or 1.0, one.value.mean), "white" if one is found[0] else "0.15"
        axis.errorbar(*point, yerr=one.value.half, fmt=marker, ms=8, capsize=5, color="0.15", mfc=fill)
        axis.annotate(one.title, point, xytext=(10, 0), textcoords="offset points", va="center")
    axis.margins(x=0.25, y=0.15)
    axis.grid(axis="y", color="0.9")
    seeds = len({result.seed for result in results})
    title = "" if seeds == 1 else f"Mean of {seeds} seeds with its 95 % confidence interval"
    xlabel = f"gradients of a training, relative to {found[0].title}"
    axis.set(xlabel=xlabel, ylabel=f"{results[0].evaluated_on.partition(' ')[0]} {_metric(results)}", title=title)


def _draw_decisions(axis: Any, runs: Sequence[Result]) -> None:
    """The share of sharp steps in each of forty sections of training, over all seeds."""
    steps = [[line for line in read_metrics(run.folder / "metrics.jsonl") if "step_seconds" in line] for run in runs]
    decisions = [[bool(line.get("sam/applied")) for line in lines] for lines in steps]
    count = min(40, *map(len, decisions))
    sections = [
        [taken[len(taken) * i // count : len(taken) * (i + 1) // count] for taken in decisions] for i in range(count)
    ]
    shares = [100 * statistics.fmean(itertools.chain(*section)) for section in sections]
    axis.stairs(shares, [100 * i / count for i in range(count + 1)], fill=True, color="0.6")
    title = f"When {runs[0].title} chose a sharp step"
    axis.set(xlabel="training, %", ylabel="sharp steps, %", ylim=(0, 100), xlim=(0, 100), title=title)


def _standings(results: Sequence[Result]) -> list[Standing]:
    methods = _by_method(results)
    return [_standing(runs, methods[0]) for runs in methods]


def _standing(runs: Sequence[Result], first: Sequence[Result]) -> Standing:
    fractions = [run.sharp_fraction for run in runs if run.sharp_fraction is not None]
    return Standing(
        runs[0].method,
        runs[0].title,
        Estimate.of([run.value for run in runs]),
        Estimate.of([run.value - other.value for run, other in zip(runs, first, strict=True)]),
        _ratio(runs, first, "gradients"),
        _ratio(runs, first, "cpu_seconds"),
        _ratio(runs, first, "steady_seconds"),
        statistics.fmean(fractions) if fractions else None,
    )


def _ratio(runs: Sequence[Result], first: Sequence[Result], name: str) -> float | None:
    """The ratio of two totals, None where one is not known or nothing was trained."""
    totals = [[getattr(run.summary, name) for run in some] for some in (runs, first)]
    known = None not in (*totals[0], *totals[1]) and sum(totals[1]) > 0
    return sum(totals[0]) / sum(totals[1]) if known else None


def _caption(results: Sequence[Result], on_cpu: bool) -> str:
    seeds = sorted({result.seed for result in results})
    words = [f"On {results[0].evaluated_on}, evaluated after the last step."]
    if len(seeds) > 1:
        interval = "mean ± 95 % confidence interval; differences are paired by seed."
        words.append(f"Seeds {seeds[0]} to {seeds[-1]}: {interval}")
    time = "CPU time of the steps" if on_cpu else "time of the steps"
    words.append(f"Gradients and {time} are totals, relative to {results[0].method}.")
    if any(result.decides for result in results):
        words.append("Sharp: the fraction of steps on which the method chose to pay for sharpness.")
    return textwrap.fill(" ".join(words), _WIDTH)


def _metric(results: Iterable[Result]) -> str:
    name = next((run.summary.headline.name for run in results if run.summary.headline), "metric")
    return f"{name} %" if name == "accuracy" else name


def _is_accuracy(results: Iterable[Result]) -> bool:
    return all(run.summary.headline is None or run.summary.headline.name == "accuracy" for run in results)


def _by_method(results: Iterable[Result]) -> list[list[Result]]:
    methods: dict[str, list[Result]] = {}
    for result in results:
        methods.setdefault(result.method, []).append(result)
    return list(methods.values())
