"""What is said about a result: tables, for Markdown and for HTML."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.results import Result
from benchmarks.summary import SHARP

CAPTIONS = {
    "cost": "Wall-clock against the share of sharp steps",
    "phases": "Where a sharp step's time goes",
    "pareto": "Accuracy against wall-clock",
    "sweep": "Accuracy against an option",
}


@dataclass(frozen=True)
class Table:
    """A table with what has to be said about it.

    Args:
        title: Above it.
        header: The columns; the first is text, the others are what `numbers` says.
        rows: As they are to be shown.
        notes: Sentences below it.
        numbers: Whether the columns after the first are numbers, which stand to the right.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    numbers: bool = True

    def markdown(self) -> str:
        """As a heading, a table and paragraphs."""
        rule = ["---", *["---:" if self.numbers else "---"] * (len(self.header) - 1)]
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.header, rule, *self.rows)]
        return "\n\n".join([f"### {self.title}", "\n".join(lines), *self.notes]) + "\n"

    def html(self) -> str:
        """The same in HTML."""
        rows = [_html_row("th", self.header), *(_html_row("td", row) for row in self.rows)]
        kind = "" if self.numbers else ' class="text"'
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<h3>{html.escape(self.title)}</h3>\n<table{kind}>\n{''.join(rows)}</table>\n{notes}\n"


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>\n"


def tables(result: Result) -> list[Table]:
    """Everything that is said about a result, its environment last."""
    shown = {"cost": _cost, "phases": _phases, "pareto": _pareto, "sweep": _sweep}[result.kind](result.summary)
    return [*shown, _environment(result)]


def _cost(summary: dict[str, Any]) -> Iterator[Table]:
    header = [
        "",
        "gradients per step",
        "ms",
        "ratio to plain",
        "quartiles",
        "CPU ratio",
        "over the floor",
        "CPU",
    ]
    for table in summary.values():
        ideal = 1 - table["base_share"]
        peak = ["peak MB"] if any("peak_mb" in row for row in table["rows"].values()) else []
        rows = [
            [
                name, f"{row['gradients']:.2f}", f"{row['ms'][1]:.2f}", f"{row['ratio'][1]:.3f}",
                f"{row['ratio'][0]:.3f}–{row['ratio'][2]:.3f}", f"{row['cpu_ratio'][1]:.3f}",
                _percent(row["over_floor"]), _percent(row["cpu_over_floor"]),
                *(f"{row['peak_mb']:.1f}" for _ in peak),
            ]
            for name, row in table["rows"].items()
        ]  # fmt: skip
        notes = [
            f"{table['rounds']} rounds, {table['parameters']:,} parameters. The base optimizer takes "
            f"{_percent(table['base_share'])} of a plain step, so the ideal ratio is 1 + {ideal:.3f} f at a "
            "fraction f of sharp steps; with ascent_fraction f is that much less. The floor is two closures and "
            "one base step, measured in the same rounds.",
            cost_verdict(table),
        ]
        yield Table(table["title"], [*header, *peak], rows, notes)


def cost_verdict(table: dict[str, Any]) -> str:
    """Who takes the cheapest SAM step, or why that cannot be said."""
    if not table["conclusive"]:
        found = f"{table['a_a']:.3f} (CPU {table['cpu_a_a']:.3f})"
        return f"No verdict: two equal optimizers came out at a ratio of {found}, not 1.00 ± 0.01."
    over = {name: _percent(table["rows"][name]["over_floor"]) for name in (SHARP, *table["against"])}
    peers = "".join(f" {_against(peer, over[peer], ratio)}" for peer, ratio in table["against"].items())
    return f"A/A {table['a_a']:.3f}. SAM's step over the floor: {over[SHARP]}.{peers}"


def _against(peer: str, over: str, ratio: Sequence[float]) -> str:
    median, low, high = ratio
    verdict = "ours is faster" if high < 1 else "ours is slower" if low > 1 else "they cannot be told apart"
    return f"{peer}: {over}; ours / its {median:.3f}, 95 % interval {low:.3f}–{high:.3f}: {verdict}."


def _phases(summary: dict[str, Any]) -> Iterator[Table]:
    for key, table in summary.items():
        phases = list(next(iter(table["rows"].values()))["phases"])
        header = ["ms", "step" if not key.startswith("tensors/") else "optimizer side", *phases]
        rows = [
            [name, *(f"{ms:.3f}" for ms in (row["ms"], *row["phases"].values()))] for name, row in table["rows"].items()
        ]
        yield Table(table["title"], header, rows, [f"Medians of {table['rounds']} rounds."])
        if key.startswith("tensors/"):
            yield _moves(table)


def _moves(table: dict[str, Any]) -> Table:
    header = ["", "kind", "bytes per parameter", "operations", "of copy bandwidth", "time, ours = 1"]
    large = table["parameters"] > 10**6
    rows = [
        [
            name, row["line"], f"{row['bytes']:.1f}", f"{row['operations']:.0f}",
            f"{100 * row['share_of_copy']:.0f} %" if large else "–", f"{row['ratio']:.2f}",
        ]
        for name, row in table["rows"].items()
    ]  # fmt: skip
    verdict = f"A/A {table['a_a']:.3f}."
    if not table["conclusive"]:
        verdict = f"No verdict: two equal optimizers came out at a ratio of {table['a_a']:.3f}, not 1.00 ± 0.01."
    notes = [
        f"{table['tensors']} tensors, {table['parameters']:,} parameters; memory is copied at "
        f"{table['copy_gb_per_s']:.1f} GB/s in the same rounds. The share of copy bandwidth is for the "
        "bytes that this kind of step has to move at least (SAM: 16), not for those that were moved.",
        verdict,
    ]
    return Table(f"{table['title']}: memory", header, rows, notes)


def _pareto(summary: dict[str, Any]) -> Iterator[Table]:
    header = [
        "",
        "n",
        "test accuracy",
        "best",
        "seconds",
        "CPU seconds",
        "gradients per step",
        "seconds to target",
    ]
    rows = [
        [
            name, str(row["n"]), _accuracy(row["accuracy"]), _accuracy(row["best"]), _seconds(row["seconds"]),
            _seconds(row["cpu_seconds"]), f"{row['gradients']:.2f}",
            "–" if row["to_target"] is None else f"{row['to_target']:.1f} ({row['reached']}/{row['n']})",
        ]
        for name, row in summary["rows"].items()
    ]  # fmt: skip
    notes = [
        "Mean ± half width of the 95 % interval (Student's t over seeds), in % of a clean test set after "
        "the last step; seconds are training without evaluation. The target is the plain optimizer's best "
        f"accuracy, {100 * summary['target']:.2f} %: median time of the seeds that reached it, and their "
        "number."
    ]
    yield Table("Accuracy and time", header, rows, notes)


def _sweep(summary: dict[str, Any]) -> Iterator[Table]:
    rows = [
        [value, str(row["n"]), _accuracy(row["accuracy"]), f"{row['gradients']:.2f}"]
        for value, row in summary["rows"].items()
    ]
    note = "Mean ± half width of the 95 % interval (Student's t over seeds), in % of a clean test set."
    yield Table(summary["key"], ["value", "n", "test accuracy", "gradients per step"], rows, [note])


def _environment(result: Result) -> Table:
    place = result.environment
    versions = ", ".join(f"{name} {version}" for name, version in place["versions"].items() if version)
    loads = [(session["load_before"][0], session.get("load_after", [None])[0]) for session in place["sessions"]]
    rows = [
        ["CPU", f"{place['cpu']}, {place['cores']} cores, {place['memory_gb']} GB"],
        ["GPU", place["gpu"] or "none"],
        ["system", place["os"]],
        ["threads", str(place["threads"])],
        [
            "malloc",
            ", ".join(f"{name}={value}" for name, value in place["malloc"].items() if value) or "default",
        ],
        ["versions", versions],
        ["commit", place["commit"] or "unknown"],
        ["copy bandwidth", f"{place['copy_gb_per_s']} GB/s"],
        ["measured", ", ".join(session["started"] for session in place["sessions"])],
        ["load before and after", "; ".join(f"{before}, {after}" for before, after in loads)],
        ["settings", ", ".join(f"{key}={value}" for key, value in result.settings.items())],
        ["complete", "yes" if result.complete else "no: interrupted"],
    ]
    return Table("Environment", ["", "value"], rows, numbers=False)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _accuracy(value: Sequence[float | None]) -> str:
    mean, half = value
    return f"{100 * (mean or 0.0):.2f}" + ("" if half is None else f" ± {100 * half:.2f}")


def _seconds(value: Sequence[float | None]) -> str:
    mean, half = value
    return f"{mean or 0.0:.2f}" + ("" if half is None else f" ± {half:.2f}")
