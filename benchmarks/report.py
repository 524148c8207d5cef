"""Reports of results: NAME.md with plots next to each result, and one page for all results in a folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.results import BenchmarkError, Result, load_result
from benchmarks.summary import (
    PEERS,
    PHASES,
    SHARP,
    summarize_cost,
    summarize_phases,
    summarize_study,
    summarize_targets,
)

CAPTIONS = {
    "cost": "step time against gradients per step",
    "phases": "where a step's time goes",
    "study": "accuracy of methods, tuned alike",
    "targets": "costs asked for, and what came out",
    "gpu": "on a CUDA device",
}


@dataclass(frozen=True)
class Table:
    """A table with notes. The columns after the first are numbers, or text if ``numbers`` is False."""

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


def tables(result: Result) -> Iterator[Table]:
    """All tables of a result except its environment."""
    for title, found in result.data.get("facts", {}).items():
        yield Table(title, ["", "found"], list(found.items()), numbers=False)
    for table in result.tables().values():
        if result.kind != "phases":
            yield _cost(table)
        if table.get("ranges"):
            yield _phases(table, result.environment["copy_gb_per_s"])
    if result.data.get("runs"):
        yield _targets(result) if result.kind == "targets" else _study(result)


def _cost(table: dict[str, Any]) -> Table:
    summary = summarize_cost(table)
    optional: dict[str, dict[str, str]] = {
        "extra, in units of norm + write": {
            name: "{:.2f} ({:.2f} to {:.2f})".format(*row["extra"])
            for name, row in summary["rows"].items()
            if row.get("extra")
        },
        "peak MB": {name: f"{row['peak_mb']:.1f}" for name, row in summary["rows"].items() if "peak_mb" in row},
        "host synchronisations": {name: str(count) for name, count in table.get("synchronisations", {}).items()},
    }
    optional = {title: column for title, column in optional.items() if column}
    rows = [
        [
            name, f"{row['gradients']:.2f}", f"{row['ms'].median:.2f}", f"{row['ratio'].median:.3f}",
            f"{row['ratio'].low:.3f}–{row['ratio'].high:.3f}", _percent(row["over_floor"]),
            *(column.get(name, "–") for column in optional.values()),
        ]
        for name, row in summary["rows"].items()
    ]  # fmt: skip
    notes = [
        f"{summary['rounds']} rounds, {table['parameters']:,} parameters. The floor, two closures and one base step in "
        f"the same rounds, takes {summary['floor']:.3f} plain steps, so the ideal ratio at n gradients per step is "
        f"1 + {summary['floor'] - 1:.3f} (n - 1).",
        *_clock(table, summary),
        verdict(summary),
        *(f"Left out: {name}. {why}" for name, why in table.get("left_out", {}).items()),
    ]
    header = ["", "gradients per step", "ms", "ratio to plain", "quartiles", "over the floor", *optional]
    return Table(table["title"], header, rows, notes)


def _clock(table: dict[str, Any], summary: dict[str, Any]) -> Iterator[str]:
    """Notes on a table's times, if they are CPU times or if extra time was measured."""
    if table.get("clock") == "cpu":
        yield "Times are CPU times of the process."
    if summary["unit"] is not None:
        yield (
            "Extra is the CPU time that a step with the most gradients spends outside its passes, less the floor's, in "
            "units of the two tensor operations that SAM cannot avoid, a norm of g and w + a g written into other "
            f"memory ({1e3 * summary['unit']:.3g} ms here): median and 95 % interval."
        )


def verdict(summary: dict[str, Any]) -> str:
    """Which implementation takes the cheapest step, or why there is no verdict."""
    if not summary["conclusive"]:
        return f"No verdict: two equal optimizers came out at a ratio of {summary['a_a']:.3f}, not 1.00 ± 0.01."
    over = {name: _percent(row["over_floor"]) for name, row in summary["rows"].items()}
    said = [f"A/A {summary['a_a']:.3f}. SAM's step over the floor: {over.get(SHARP, '–')}."]
    for peer, (median, low, high) in summary["against"].items():
        found = "ours is faster" if high < 1 else "ours is slower" if low > 1 else "they cannot be told apart"
        above = "" if summary["rows"][peer]["over_floor"] is None else f" {over[peer]};"
        ratio = f"{_ours(peer)} / its {median:.3f}, 95 % interval {low:.3f}–{high:.3f}"
        said.append(f"{peer}:{above} {ratio}: {found}.")
    return " ".join(said)


def _ours(peer: str) -> str:
    """The name of this package's step in a comparison with a peer."""
    return "ours" if PEERS[peer] == SHARP else PEERS[peer]


def _phases(table: dict[str, Any], gb_per_s: float) -> Table:
    rows = []
    for name, row in summarize_phases(table).items():
        phases = row["phases"]
        outside = row["profiled"] - phases["pass"] - phases["base step"]
        rows.append([name, *(f"{ms:.3f}" for ms in (row["step"], row["profiled"], outside, *phases.values()))])
    rounds = min(len(columns["pass"]) for columns in table["ranges"].values())
    least = 16 * table["parameters"] / gb_per_s / 1e6
    notes = [
        f"Medians; of the phases over {rounds} rounds. What is in none of them, with all that an optimizer without "
        "ranges does, is the rest; all but passes and base step is outside. The 16 bytes per parameter that SAM has "
        f"to move there at least are copied in {least:.3f} ms.",
    ]
    header = ["ms", "step", "profiled", "outside", *PHASES, "rest"]
    return Table(f"{table['title']}: phases", header, rows, notes)


def _study(result: Result) -> Table:
    rows = summarize_study(result.settings, result.data)
    baselines = result.data["study"]["baselines"]
    shown = [
        [
            f"**{row['contender']}**" if row["best"] else row["contender"], row["length"], _options(row["chosen"]),
            _percent(row["validation"]), _interval(row["accuracy"], 100),
            *(_interval(row["against"][name], 100) if name in row["against"] else "–" for name in baselines),
            f"{row['gradients']:.2f}" + (f" + {row['forwards']:.2f} forward" if row["forwards"] else ""),
            f"{row['cpu_seconds']:.2f}", _percent(row["train"]),
        ]
        for row in rows
    ]  # fmt: skip
    notes = [
        f"Test accuracy in % after the last step, {result.data['study']['seeds']} fresh seeds, ± half width of the "
        "95 % interval (Student's t); differences are taken seed by seed, from the baseline at its own best length. "
        "Bold is the length that validation images chose. Gradients and CPU time are totals of the training, "
        f"{baselines[0]} at its best length being 1. Training accuracy is that of the last epoch, on the labels as "
        "they are.",
    ]
    header = [
        "", "length", "chosen", "validation", "test", *(f"− {name}" for name in baselines), "gradients", "CPU time",
        "training",
    ]  # fmt: skip
    return Table("Tuned, then tested", header, shown, notes)


def _options(chosen: dict[str, Any]) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in chosen.items() if value is not None) or "–"


def _targets(result: Result) -> Table:
    header = ["", "n", "sharp at step 100", "at the end", "least from there on", "most", "time over plain"]
    rows = [
        [
            name, str(row["n"]), *(f"{100 * row[key]:.2f} %" for key in ("early", "fraction", "least", "most")),
            "–" if row["overhead"] is None else f"{_interval(row['overhead'], 100)} %",
        ]
        for name, row in summarize_targets(result.data["runs"]).items()
    ]  # fmt: skip
    note = (
        "Fractions of sharp steps: means over seeds, and the extremes of all seeds from step 100 on. Time without "
        "evaluation, over the mean of the plain runs just before and after: mean ± half width of the 95 % interval."
    )
    return Table("Targets", header, rows, [note])


def _environment(result: Result) -> Table:
    place, sessions = result.environment, result.environment["sessions"]
    rows = {
        "CPU": f"{place['cpu']}, {place['cores']} cores, {place['memory_gb']} GB",
        "GPU": place["gpu"] or "none",
        "system": f"{place['os']}, {place['threads']} thread(s), copies memory at {place['copy_gb_per_s']} GB/s",
        "malloc": ", ".join(f"{name}={value}" for name, value in place["malloc"].items() if value) or "default",
        "versions": ", ".join(f"{name} {version}" for name, version in place["versions"].items() if version),
        "commit": place["commit"] or "unknown",
        "measured": ", ".join(session["started"] for session in sessions),
        "load before, after": "; ".join(f"{s['load_before'][0]}, {s.get('load_after', ['–'])[0]}" for s in sessions),
        "settings": ", ".join(f"{key}={value}" for key, value in result.settings.items()),
        **(
            {"commits": ", ".join(session.get("commit") or "unknown" for session in sessions)}
            if result.kind == "study"
            else {}
        ),
        "complete": "yes" if result.complete else "no: interrupted",
    }
    return Table("Environment", ["", "value"], list(rows.items()), numbers=False)


def _commits(sessions: Sequence[dict[str, Any]]) -> dict[str, str]:
    """The commits of the sessions, if they are known to differ."""
    commits = dict.fromkeys(session["commit"] for session in sessions if session.get("commit"))
    return {"commits of the sessions": ", ".join(commits)} if len(commits) > 1 else {}


def markdown(result: Result) -> str:
    """A result as Markdown, with the plots in its folder."""
    shown = [table.markdown() for table in (*tables(result), _environment(result))]
    return "\n".join([f"## {result.path.stem}: {CAPTIONS[result.kind]}\n", *_images(result), *shown])


def page(folder: Path) -> str:
    """One page for all results in a folder: their plots and notes."""
    parts = ["# What was measured\n\nWritten by `python -m benchmarks report` from the results beside it.\n"]
    for path in sorted(folder.glob("*.json")):
        result = load_result(path)
        place = result.environment
        versions = ", ".join(f"{k} {place['versions'][k]}" for k in ("torch", "mosaicml") if place["versions"].get(k))
        where = f"{place['gpu'] or place['cpu']}, {place['threads']} thread(s), {versions}"
        day = place["sessions"][0]["started"][:10]
        parts.append(f"## [{path.stem}]({path.stem}.md): {CAPTIONS[result.kind]}\n\n{where}; {day}.\n")
        parts += _images(result)
        parts += [f"**{table.title}.** {' '.join(table.notes)}\n" for table in tables(result) if table.notes]
    return "\n".join(parts)


def _images(result: Result) -> list[str]:
    return [f"![{plot.stem}]({plot.name})\n" for plot in sorted(result.path.parent.glob(f"{result.path.stem}.*.svg"))]


def write(result: Result) -> list[Path]:
    """Write a result's Markdown next to its file, and its plots if matplotlib is installed."""
    written = []
    try:
        from benchmarks.plots import plots
    except ImportError:
        print("no plots: pip install 'sam_algos[bench]'", file=sys.stderr)
    else:
        for name, svg in plots(result).items():
            written.append(result.path.with_suffix(f".{name}.svg"))
            written[-1].write_bytes(svg)
    path = result.path.with_suffix(".md")
    path.write_text(markdown(result), encoding="utf-8")
    return [path, *written]


def rebuild(folder: Path) -> list[Path]:
    """Rewrite the reports and plots of all results in a folder, and its page.

    Raises:
        BenchmarkError: If the folder has no results, or if one of its files is not a result.
    """
    found = [load_result(path) for path in sorted(folder.glob("*.json"))]
    if not found:
        raise BenchmarkError(f"{folder}: no results there")
    written = [path for result in found for path in write(result)]
    (folder / "README.md").write_text(page(folder), encoding="utf-8")
    return [*written, folder / "README.md"]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _interval(value: Sequence[float | None], scale: float) -> str:
    mean, half = value
    return f"{scale * (mean or 0.0):.2f}" + ("" if half is None else f" ± {scale * half:.2f}")
