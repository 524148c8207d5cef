"""The plots of a result; without a window, and the same bytes for the same numbers."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.results import Result

_COLORS = {
    "SAM": "#0072b2", "SSSAM": "#56b4e9", "AESAM": "#d55e00", "LookSAM": "#009e73", "AELookSAM": "#e69f00",
    "ASAM": "#cc79a7",
}  # fmt: skip
_PEER = "#888888"
_MARKERS = {"Composer": "s", "pytorch_optimizer": "^"}
_STYLE: Any = {
    "svg.hashsalt": "sam_algos",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def figures(result: Result) -> dict[str, Figure]:
    """The plots of a result, by a name for their files."""
    with matplotlib.rc_context(_STYLE):
        return dict({"cost": _cost, "phases": _phases, "pareto": _pareto, "sweep": _sweep}[result.kind](result.summary))


def render(figure: Figure, kind: str) -> bytes:
    """A plot as the content of a file.

    Args:
        figure: The plot.
        kind: ``png`` or ``svg``.

    Returns:
        bytes: Without the date in it.
    """
    file = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    with matplotlib.rc_context(_STYLE):
        figure.savefig(file, format=kind, dpi=150, metadata=metadata, bbox_inches="tight")
    return file.getvalue()


def _cost(summary: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    for key, table in summary.items():
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        _fractions(left, table)
        _over_floor(right, table)
        figure.suptitle(table["title"] + ("" if table["conclusive"] else f" (A/A {table['a_a']:.3f}: no verdict)"))
        yield key.replace("/", "-"), figure


def _fractions(axes: Axes, table: dict[str, Any]) -> None:
    """Each line of methods from no to all sharp steps, and the ideal line."""
    slope = 1 - table["base_share"]
    axes.plot([0, 1], [1, 1 + slope], color="black", linestyle=":", label=f"ideal: 1 + {slope:.2f} f")
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in table["rows"].values():
        if row["package"] != "torch":
            lines.setdefault(row["line"], []).append(row)
    styles: dict[str, Iterator[str]] = {}
    for line, rows in lines.items():
        style = next(styles.setdefault(_color(line), itertools.cycle(("-", "--", "-."))))
        rows.sort(key=lambda row: row["gradients"])
        x, y = [row["gradients"] - 1 for row in rows], [row["ratio"][1] for row in rows]
        spread = [
            [r["ratio"][1] - r["ratio"][0] for r in rows],
            [r["ratio"][2] - r["ratio"][1] for r in rows],
        ]
        axes.errorbar(
            x, y, yerr=spread, label=line, color=_color(line), marker=_MARKERS.get(rows[0]["package"], "o"),
            markersize=4, linestyle=style, linewidth=1, elinewidth=0.6, alpha=0.85,
        )  # fmt: skip
    axes.set(
        xlabel="f: gradients per step beyond the first (the fraction of sharp steps)", ylabel="time per step, plain = 1"
    )
    axes.legend(fontsize=7, frameon=False)


def _over_floor(axes: Axes, table: dict[str, Any]) -> None:
    """What the first of each line that is sharp on every step takes above two closures and one base step."""
    first: dict[str, tuple[str, float]] = {}
    for name, row in table["rows"].items():
        if row["over_floor"] is not None and row["gradients"] == 2 and row["package"] != "torch":
            first.setdefault(row["line"], (name, 100 * row["over_floor"]))
    lines = list(first)[::-1]
    names, widths = [first[line][0] for line in lines], [first[line][1] for line in lines]
    bars = axes.barh(names, widths, color=[_color(line) for line in lines])
    axes.bar_label(bars, fmt="%.1f %%", fontsize=7, padding=2)
    axes.set_xlabel("sharp step over the floor, %")
    axes.tick_params(axis="y", labelsize=7)
    axes.margins(x=0.15)
    axes.axvline(0, color="black", linewidth=0.6)


def _phases(summary: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    for key, table in summary.items():
        names = list(table["rows"])[::-1]
        figure = Figure(figsize=(9, 1.2 + 0.32 * len(names)))
        axes = figure.subplots()
        left = [0.0] * len(names)
        shades = matplotlib.colormaps["tab10"]
        for i, phase in enumerate(table["rows"][names[0]]["phases"]):
            widths = [table["rows"][name]["phases"][phase] for name in names]
            axes.barh(names, widths, left=left, label=phase, color=shades(i))
            left = [a + b for a, b in zip(left, widths, strict=True)]
        if key.startswith("tensors/") and table["parameters"] > 10**6:
            bound = 16 * table["parameters"] / table["copy_gb_per_s"] / 1e6
            axes.axvline(bound, color="black", linestyle=":", label="16 bytes per parameter, copied")
        axes.set(xlabel="ms", title=table["title"])
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        yield key.replace("/", "-"), figure


def _sweep(summary: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    accuracies = [row["accuracy"] for row in summary["rows"].values()]
    halves = [100 * (half or 0.0) for _, half in accuracies]
    axes.errorbar(list(summary["rows"]), [100 * mean for mean, _ in accuracies], yerr=halves, fmt="o-", capsize=3)
    axes.set(xlabel=summary["key"], ylabel="clean test accuracy, %")
    yield "sweep", figure


def _pareto(summary: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    rows = summary["rows"]
    _frontier(left, rows, {name: (row["seconds"][0], row["seconds"][1] or 0.0) for name, row in rows.items()})
    _frontier(right, rows, {name: (row["work"], 0.0) for name, row in rows.items()})
    left.set(xlabel="training time, seconds", ylabel="clean test accuracy, %")
    right.set(xlabel="gradients per step of the plain training")
    right.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    yield "frontier", figure


def _frontier(axes: Axes, rows: dict[str, Any], costs: dict[str, tuple[float, float]]) -> None:
    """Accuracy against a cost; the line joins those that nothing cheaper beats."""
    points = {name: (cost, 100 * rows[name]["accuracy"][0]) for name, (cost, _) in costs.items()}
    for name, (cost, accuracy) in points.items():
        half = 100 * (rows[name]["accuracy"][1] or 0.0)
        axes.errorbar(
            [cost], [accuracy], xerr=[costs[name][1]], yerr=[half], label=name, color=_color(name),
            fmt="D" if "twice" in name else "o", capsize=2,
        )  # fmt: skip
    best = [points[name] for name in frontier(points)]
    axes.plot(*zip(*best, strict=True), color="black", linewidth=0.7, linestyle="--", zorder=0)


def frontier(points: dict[str, tuple[float, float]]) -> list[str]:
    """Those that are more accurate than everything cheaper.

    Args:
        points: Cost and accuracy by name.

    Returns:
        list[str]: From cheap to dear.

    Example:
        >>> frontier({"a": (1, 0.5), "b": (2, 0.4), "c": (3, 0.9)})
        ['a', 'c']
    """
    best: list[str] = []
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if not best or points[name][1] > points[best[-1]][1]:
            best.append(name)
    return best


def _color(name: str) -> str:
    method = name.partition(",")[0]
    return _COLORS.get(method) or {k.lower(): v for k, v in _COLORS.items()}.get(method, _PEER)
