"""Time each method's step against a plain step and the floor, in the same rounds."""

from __future__ import annotations

import copy
import gc
from argparse import Namespace
from collections.abc import Callable
from contextlib import closing
from typing import Any

import torch

from benchmarks.contenders import Contender, alike, contenders
from benchmarks.loops import WHERE, MakeSeat, Seat, closure_for, run
from benchmarks.results import BenchmarkError, Result
from benchmarks.timing import Meter, Rotation, norm_and_write
from benchmarks.workloads import Task, Workload, workloads


def settings(args: Namespace) -> dict[str, Any]:
    """The settings of the measurement; resuming requires equal settings."""
    keys = ("recipe", "overrides", "workloads", "modes", "seconds", "rounds", "all", "quick")
    return {key: getattr(args, key) for key in keys}


def measure(args: Namespace, result: Result) -> None:
    """Measure every workload in every mode; ``result`` holds all measurements so far at any time."""
    for name, workload in workloads(args.workloads, args.recipe, args.overrides).items():
        for mode in args.modes:
            essential = workload.essential or mode == "ddp" or (args.quick and name != "recipe")
            fill(
                result.data.setdefault(f"{name}/{mode}", {}), workload, mode, seconds=args.seconds,
                rounds=args.rounds, save=result.save, essential=essential and not args.all,
            )  # fmt: skip


def fill(
    table: dict[str, Any], workload: Workload, mode: str, *, seconds: float, rounds: int, save: Callable[[], None],
    essential: bool = True, pick: Callable[[dict[str, Contender]], dict[str, Contender]] = dict,
    column: str = "samples", meter: Meter | None = None, seat: MakeSeat = Seat,
) -> None:  # fmt: skip
    """Add to a column of a table until there are enough seconds and rounds in it.

    Args:
        table: The measurements so far, to which new ones are added.
        workload: The task to train.
        mode: The loop, one of `benchmarks.loops.WHERE`.
        seconds: Total seconds to measure.
        rounds: Minimum number of rounds.
        save: Called every few seconds.
        essential: Whether to compare only the essential contenders.
        pick: Selects among the contenders.
        column: The column of the table to fill.
        meter: Takes the readings of each step; default: its time.
        seat: Wraps each contender's optimizer.
    """
    with closing(workload.make(mode)) as task:
        chosen = pick(contenders(task.optimizer, mode=mode, essential=essential))
        table["left_out"] = {name: why for name, c in chosen.items() if (why := refusal(c, task))}
        chosen = {name: c for name, c in chosen.items() if name not in table["left_out"]}
        samples = table.setdefault(column, {})
        if samples and samples.keys() != chosen.keys():
            raise BenchmarkError("the installed implementations to compare have changed; --overwrite starts again")
        table["title"] = f"{workload.title}, {WHERE[mode]}"
        table["parameters"] = sum(p.numel() for p in task.network.parameters())
        table.setdefault("contenders", {}).update(
            {c.name: {"line": c.line, "package": c.package} for c in chosen.values()}
        )
        one_thread = torch.get_num_threads() == 1 and not torch.cuda.is_available()
        table.setdefault("clock", "cpu" if one_thread and mode != "ddp" else "wall")
        unit = None
        if meter is None and not torch.cuda.is_available():
            unit = norm_and_write(next(task.network.parameters()), table["parameters"])
        gc.collect()
        gc.freeze()  # later collections only look at objects that the steps make
        rotation = Rotation(
            list(chosen), samples, seconds=seconds, rounds=rounds, title=table["title"], save=save, meter=meter,
            unit=unit, units=None if unit is None else table.setdefault("unit", {}),
        )  # fmt: skip
        with closing(rotation):
            run(mode, task, chosen, rotation, seat)


def refusal(contender: Contender, task: Task) -> str | None:
    """Why a method cannot take a step here, such as missing layers or momentum; None if it can."""
    if contender.method is None:
        return None
    model = copy.deepcopy(task.network)
    inputs, labels = next(task.batches)
    try:
        optimizer = contender.wrap(alike(task.optimizer, model.parameters()), model)
        optimizer.step(closure_for(contender, optimizer, task, model, (inputs[:8], labels[:8])))
    except ValueError as error:
        return str(error)
    return None
