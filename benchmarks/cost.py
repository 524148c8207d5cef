"""Wall-clock against the share of sharp steps: each method's step beside a plain one, in the same rounds."""

from __future__ import annotations

import gc
import statistics
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing
from typing import Any

from benchmarks.contenders import AGAIN, FLOOR, PLAIN, contenders
from benchmarks.loops import LOOPS, WHERE
from benchmarks.results import BenchmarkError, Result
from benchmarks.seats import Contender, Seat
from benchmarks.summary import PEERS, SHARP, agrees, compare, median_interval, ratios
from benchmarks.timing import Rotation
from benchmarks.workloads import Workload, workloads


def settings(args: Namespace) -> dict[str, Any]:
    """What decides what is measured; a measurement is resumed only with the same."""
    keys = ("recipe", "overrides", "workloads", "modes", "seconds", "rounds", "all", "quick")
    return {key: getattr(args, key) for key in keys}


def measure(args: Namespace, result: Result) -> None:
    """Measure every workload in every mode, and leave in ``result`` what was measured so far at any time.

    Raises:
        BenchmarkError: If something is wrong with the recipe.
    """
    for name, workload in workloads(args.workloads, args.recipe_path, args.overrides).items():
        essential = not args.all and (workload.essential or (args.quick and name != "recipe"))
        for mode in args.modes:
            chosen = contenders(essential=essential or (mode == "ddp" and not args.all), mode=mode)
            key = f"{name}/{mode}"
            table = result.data.setdefault(key, {"title": f"{workload.title}, {WHERE[mode]}"})
            try:
                _measure_table(args, workload, mode, chosen, table, lambda: update(result))
            finally:
                if key in result.measured():
                    update(result)


def update(result: Result) -> None:
    """Summarise what was measured, and write it down."""
    result.summary = {key: summarize(table) for key, table in result.measured().items()}
    result.save()


def _measure_table(
    args: Namespace, workload: Workload, mode: str, chosen: dict[str, Contender],
    table: dict[str, Any], save: Callable[[], None],
) -> None:  # fmt: skip
    samples = table.setdefault("samples", {})
    table["contenders"] = {c.name: {"line": c.line, "package": c.package} for c in chosen.values()}
    if samples and samples.keys() != chosen.keys():
        raise BenchmarkError("the other implementations that are installed have changed; --overwrite starts anew")
    trainer = workload.make()
    rotation = Rotation(
        list(chosen), samples, seconds=args.seconds, rounds=args.rounds, title=table["title"], save=save
    )
    table["parameters"] = sum(p.numel() for p in trainer.state.model.parameters())
    gc.collect()
    gc.freeze()  # collections then look at what the steps make only
    with closing(rotation), closing(trainer):
        LOOPS[mode](trainer, chosen, rotation, Seat)


def summarize(table: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one workload in one mode.

    Args:
        table: Its samples.

    Returns:
        dict: ``rows`` by contender (see `benchmarks.summary.compare`), ``base_share`` (the base optimizer's
        share of a plain step), ``a_a`` and ``cpu_a_a``, the ratio of two equal contenders, with ``conclusive``
        whether both are 1, and ``against``, by peer the median ratio of this package's SAM step to the peer's and
        its 95 % interval.
    """
    samples = table["samples"]
    plain, floor = samples[PLAIN], samples[FLOOR]
    rows = {name: {**table["contenders"][name], **compare(columns, plain, floor)} for name, columns in samples.items()}
    a_a, cpu_a_a = rows[AGAIN]["ratio"][1], rows[AGAIN]["cpu_ratio"][1]
    return {
        "title": table["title"],
        "parameters": table["parameters"],
        "rounds": len(plain["wall"]),
        "base_share": statistics.median(floor["base"]) / statistics.median(plain["wall"]),
        "a_a": a_a,
        "cpu_a_a": cpu_a_a,
        "conclusive": agrees(a_a) and agrees(cpu_a_a),
        "against": {
            peer: [statistics.median(ours), *median_interval(ours)]
            for peer in PEERS
            if peer in samples and (ours := ratios(samples[SHARP]["wall"], samples[peer]["wall"]))
        },
        "rows": rows,
    }
