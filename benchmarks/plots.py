"""The plots of a result as SVG, drawn without a display; equal numbers give equal bytes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter

from benchmarks.names import color
from benchmarks.results import Result
from benchmarks.summary import summarize_cost, summarize_phases, summarize_study

_MARKERS = {"Composer": "s", "pytorch_optimizer": "^"}
_STYLE: Any = {
    "svg.hashsalt": "sam_algos", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False,
}  # fmt: skip


def plots(result: Result) -> dict[str, bytes]:
    """The plots of a result, by file name."""
    found: dict[str, bytes] = {}
    for key, table in result.tables().items():
        name = key.replace("/", "-")
        if result.kind != "phases":
            found[name] = _svg(_cost, table)
        if table.get("ranges"):
            found[name + ("" if result.kind == "phases" else "-phases")] = _svg(_phases, table)
    if result.kind == "study" and result.data.get("runs"):
        found["frontier"] = _svg(_frontiers, summarize_study(result.settings, result.data))
    return found


def _svg(draw: Callable[..., Figure], *what: Any) -> bytes:
    file = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        draw(*what).savefig(file, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return file.getvalue()


def _cost(table: dict[str, Any]) -> Figure:
    """A line for each method from no to all sharp steps, and the ideal line, which ends at the measured floor."""
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


def _frontiers(rows: list[dict[str, Any]]) -> Figure:
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    first = rows[0]["contender"] if rows else ""
    for axes, cost, what in ((left, "cpu_seconds", "CPU time"), (right, "gradients", "gradients")):
        _frontier(axes, rows, cost)
        axes.set(xlabel=f"{what} of the training, best {first} = 1", xscale="log")
        for formatted in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            formatted(FormatStrFormatter("%g"))
    left.set(ylabel="test accuracy, %")
    right.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _frontier(axes: Axes, rows: list[dict[str, Any]], cost: str) -> None:
    """Accuracy against total cost, with a line per contender; the dashed line is the Pareto frontier."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault(row["contender"], []).append(row)
    for i, (name, own) in enumerate(lines.items()):
        axes.errorbar(
            [row[cost] for row in own], [100 * row["accuracy"][0] for row in own],
            yerr=[100 * (row["accuracy"][1] or 0.0) for row in own], label=name, color=color(name) or f"C{i}",
            marker="osD^v"[i % 5], markersize=4, linewidth=0.8, elinewidth=0.5, capsize=2,
        )  # fmt: skip
    points = {f"{row['contender']} {row['length']}": (row[cost], 100 * row["accuracy"][0]) for row in rows}
    best = [points[name] for name in frontier(points)]
    axes.plot(*zip(*best, strict=True), color="black", linewidth=0.7, linestyle="--", zorder=0)


def frontier(points: dict[str, tuple[float, float]]) -> list[str]:
    """The names of the points that are more accurate than every cheaper point, from cheap to expensive.

    Example:
        >>> frontier({"a": (1, 0.5), "b": (2, 0.4), "c": (3, 0.9)})
        ['a', 'c']
    """
    best: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not best or points[name][1] > points[best[-1]][1]:
            best.append(name)
    return best
