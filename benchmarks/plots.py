"""The plots of a result as SVG; without a window, and the same bytes for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.names import color
from benchmarks.results import Result
from benchmarks.summary import summarize_accuracy, summarize_cost, summarize_phases

_MARKERS = {"Composer": "s", "pytorch_optimizer": "^"}
_STYLE: Any = {
    "svg.hashsalt": "sam_algos", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False,
}  # fmt: skip


def plots(result: Result) -> dict[str, bytes]:
    """The plots of a result, by a name for their files."""
    found: dict[str, bytes] = {}
    for key, table in result.tables().items():
        name = key.replace("/", "-")
        if result.kind != "phases":
            found[name] = _svg(_cost, table)
        if table.get("ranges"):
            found[name + ("" if result.kind == "phases" else "-phases")] = _svg(_phases, table)
    if result.data.get("runs"):
        rows, key = summarize_accuracy(result.data["runs"])["rows"], result.settings.get("key")
        found["accuracy"] = _svg(_values, rows, key) if key else _svg(_frontiers, rows)
    return found


def _svg(draw: Callable[..., Figure], *what: Any) -> bytes:
    file = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        draw(*what).savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return file.getvalue()


def _cost(table: dict[str, Any]) -> Figure:
    """Each line of methods from no to all sharp steps, and the ideal line, which ends at the measured floor."""
    summary = summarize_cost(table)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([1, 2], [1, summary["floor"]], color="black", linestyle=":", label="ideal: plain to floor")
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in summary["rows"].values():
        if row["package"] != "torch":
            lines.setdefault(row["line"], []).append(row)
    for line, rows in lines.items():
        rows.sort(key=lambda row: row["gradients"])
        low, middle, high = zip(*(row["ratio"] for row in rows), strict=True)
        spread = [[m - x for m, x in zip(middle, low, strict=True)], [x - m for m, x in zip(middle, high, strict=True)]]
        axes.errorbar(
            [row["gradients"] for row in rows], middle, yerr=spread,
            label=line, color=color(line), marker=_MARKERS.get(rows[0]["package"], "o"), markersize=4, linewidth=1,
            elinewidth=0.6, alpha=0.85, linestyle="--" if "," in line else "-",
        )  # fmt: skip
    doubt = "" if summary["conclusive"] else f" (A/A {summary['a_a']:.3f}: no verdict)"
    axes.set(xlabel="gradients per step", ylabel="time per step, plain = 1", title=table["title"] + doubt)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _phases(table: dict[str, Any]) -> Figure:
    rows = summarize_phases(table)
    names = list(rows)[::-1]
    figure = Figure(figsize=(9, 1.2 + 0.32 * len(names)))
    axes = figure.subplots()
    left = [0.0] * len(names)
    for i, phase in enumerate(rows[names[0]]["phases"]):
        widths = [rows[name]["phases"][phase] for name in names]
        axes.barh([_line(table, name) for name in names], widths, left=left, label=phase, color=f"C{i}")
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set(xlabel="ms", title=table["title"])
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _line(table: dict[str, Any], name: str) -> str:
    return table["contenders"][name]["line"]


def _values(rows: dict[str, Any], key: str) -> Figure:
    """Accuracy against the values of an option: one line, or one for each method."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, dict[str, tuple[float, float | None]]] = {}
    for name, row in rows.items():
        method, _, value = name.rpartition(", ")
        lines.setdefault(method, {})[value] = row["accuracy"]
    for method, found in lines.items():
        means, halves = [100 * mean for mean, _ in found.values()], [100 * (half or 0) for _, half in found.values()]
        axes.errorbar(list(found), means, yerr=halves, fmt="o-", capsize=3, label=method, color=color(method))
    axes.set(xlabel=key, ylabel="clean test accuracy, %")
    if len(lines) > 1:
        axes.legend(fontsize=8, frameon=False)
    return figure


def _frontiers(rows: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _frontier(left, rows, {name: (row["seconds"][0], row["seconds"][1] or 0.0) for name, row in rows.items()})
    _frontier(right, rows, {name: (row["work"], 0.0) for name, row in rows.items()})
    left.set(xlabel="training time, seconds", ylabel="clean test accuracy, %")
    right.set(xlabel="gradients per step of the plain training")
    right.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _frontier(axes: Axes, rows: dict[str, Any], costs: dict[str, tuple[float, float]]) -> None:
    """Accuracy against a cost; the line joins those that nothing cheaper beats."""
    points = {name: (cost, 100 * rows[name]["accuracy"][0]) for name, (cost, _) in costs.items()}
    for name, (cost, accuracy) in points.items():
        axes.errorbar(
            [cost], [accuracy], xerr=[costs[name][1]], yerr=[100 * (rows[name]["accuracy"][1] or 0.0)], label=name,
            color=color(name), fmt="D" if "," in name else "o", capsize=2,
        )  # fmt: skip
    best = [points[name] for name in frontier(points)]
    axes.plot(*zip(*best, strict=True), color="black", linewidth=0.7, linestyle="--", zorder=0)


def frontier(points: dict[str, tuple[float, float]]) -> list[str]:
    """The names of those that are more accurate than everything cheaper, from cheap to dear.

    Example:
        >>> frontier({"a": (1, 0.5), "b": (2, 0.4), "c": (3, 0.9)})
        ['a', 'c']
    """
    best: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not best or points[name][1] > points[best[-1]][1]:
            best.append(name)
    return best
