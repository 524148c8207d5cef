"""Several trainings side by side: a table, and a picture of what they did."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from sam_algos.recipes.records import Summary, headline, read_metrics


@dataclass(frozen=True)
class Result:
    """One training.

    Args:
        method (str): What it was trained with.
        seed (int): Its seed.
        folder (Path): Where its metrics lie, as ``metrics.jsonl``.
        summary (Summary): What it came to.
    """

    method: str
    seed: int
    folder: Path
    summary: Summary

    @property
    def value(self) -> float:
        """Its headline metric; NaN where none was logged."""
        return float("nan") if self.summary.headline is None else self.summary.headline.value


def rows(results: Iterable[Result]) -> list[dict[str, Any]]:
    """The results as plain values.

    Args:
        results (Iterable[Result]): All of them.

    Returns:
        list[dict[str, Any]]: One for each training.
    """
    return [
        {
            "method": result.method,
            "seed": result.seed,
            "metric": result.summary.headline and result.summary.headline.name,
            "value": result.summary.headline and result.summary.headline.value,
            "fraction": result.summary.fraction,
            "steps": result.summary.steps,
            "gradients": result.summary.gradients,
            "train_seconds": result.summary.train_seconds,
            "steady_seconds": result.summary.steady_seconds,
            "folder": str(result.folder),
        }
        for result in results
    ]


def table(results: Sequence[Result]) -> str:
    """The results as a table: a row for each method, means over its seeds.

    Times are those of steps, at the median of each kind. With several seeds there is Student's 95 % interval of the
    mean, and of the difference to the first method, seed by seed.

    Args:
        results (Sequence[Result]): All of them.

    Returns:
        str: As people read it.
    """
    methods = _by_method(results)
    first = next(iter(methods.values()))
    several = len(first) > 1
    lines = [
        [
            "method",
            _metric(results),
            *([f"to {first[0].method}"] if several else []),
            "SAM",
            "steps",
            "gradients",
            "time",
            "",
        ]
    ]
    for runs in methods.values():
        values = [run.value for run in runs]
        seconds, base = (statistics.fmean(run.summary.steady_seconds for run in some) for some in (runs, first))
        differences = [run.value - other.value for run, other in zip(runs, first, strict=True)]
        lines.append([
            runs[0].method, _mean(values), *(["" if runs is first else _mean(differences, "+")] if several else []),
            f"{100 * statistics.fmean(run.summary.fraction for run in runs):.1f} %",
            f"{statistics.fmean(run.summary.steps for run in runs):.0f}",
            f"{statistics.fmean(run.summary.gradients for run in runs):.0f}",
            f"{seconds:.1f} s", f"x {seconds / base:.2f}" if base else "",
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )
    chance = "" if several else "\nOne training each: --seeds 5 tells what is more than chance."
    return f"{text}\n\nTime is that of the steps, each kind at its median.{chance}"


def draw(results: Sequence[Result], path: Path) -> Path:
    """Draw the metric over the steps, and for adaptive methods the statistic, the threshold and the decisions.

    Args:
        results (Sequence[Result]): All of them; of several seeds all curves are drawn, and the first one's decisions.
        path (Path): The picture, in any format that matplotlib writes.

    Returns:
        Path: The same.
    """
    from matplotlib.figure import Figure

    methods = _by_method(results)
    adaptive = [runs[0] for runs in methods.values() if any("sam/threshold" in line for line in _steps(runs[0]))]
    figure = Figure(figsize=(9, 3.4 * (1 + len(adaptive))), layout="constrained")
    axes = figure.subplots(1 + len(adaptive), 1, squeeze=False)[:, 0]
    for number, runs in enumerate(methods.values()):
        for run in runs:
            points = [(line["batch"], found.value) for line in read_metrics(run.folder / "metrics.jsonl")
                      if (found := headline(line)) is not None]  # fmt: skip
            label = run.method if run is runs[0] else None
            axes[0].plot(*zip(*points, strict=True), "o-", ms=3, color=f"C{number}", label=label)
    axes[0].set(xlabel="step", ylabel=_metric(results), title="Evaluations")
    axes[0].legend()
    for axis, run in zip(axes[1:], adaptive, strict=True):
        _draw_decisions(axis, run)
    figure.savefig(path, dpi=130)
    return path


def _draw_decisions(axis: Any, run: Result) -> None:
    steps = [line for line in _steps(run) if line.get("sam/statistic") is not None]
    sharp = [line for line in steps if line["sam/applied"]]
    axis.plot(*_columns(steps, "sam/statistic"), lw=0.8, color="0.6", label="statistic")
    axis.plot(*_columns(steps, "sam/threshold"), lw=1.2, color="C1", label="threshold")
    share = len(sharp) / len(steps)
    axis.plot(*_columns(sharp, "sam/statistic"), ".", ms=4, color="C3", label=f"sharp steps ({100 * share:.0f} %)")
    positive = [line["sam/statistic"] for line in steps if line["sam/statistic"] > 0]
    if len(positive) == len(steps) and max(positive) > 10 * min(positive):
        axis.set_yscale("log")
        axis.set_ylim(min(positive) / 2, max(positive) * 2)
    axis.set(xlabel="step", ylabel="‖g‖², or its logarithm for a target", title=f"What {run.method} decided")
    axis.legend()


def _columns(lines: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    return [line["batch"] for line in lines], [line[key] for line in lines]


def _steps(run: Result) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run.folder / "metrics.jsonl") if "step_seconds" in line]


def _metric(results: Iterable[Result]) -> str:
    name = next((run.summary.headline.name for run in results if run.summary.headline), "metric")
    return f"{name} %" if name == "accuracy" else name


def _by_method(results: Iterable[Result]) -> dict[str, list[Result]]:
    methods: dict[str, list[Result]] = {}
    for result in results:
        methods.setdefault(result.method, []).append(result)
    return methods


def _mean(values: Sequence[float], sign: str = "") -> str:
    """The mean, with Student's 95 % interval where there are several values."""
    mean = f"{statistics.fmean(values):{sign}.2f}"
    if len(values) < 2:
        return mean
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean} ± {half:.2f}"
