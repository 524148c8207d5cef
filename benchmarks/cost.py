"""Each method's step beside a plain one and the floor, in the same rounds."""

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
    """What decides what is measured; a measurement is resumed only with the same."""
    keys = ("recipe", "overrides", "workloads", "modes", "seconds", "rounds", "all", "quick")
    return {key: getattr(args, key) for key in keys}


def measure(args: Namespace, result: Result) -> None:
    """Measure every workload in every mode, and leave in ``result`` what was measured so far at any time."""
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
        table: What was measured before, and what is added to it.
        workload: What is trained.
        mode: In which loop, one of `benchmarks.loops.WHERE`.
        seconds: How much to measure in all.
        rounds: How many rounds at least.
        save: Called every few seconds.
        essential: Whether only the essential contenders are compared.
        pick: Which of them.
        column: Where in the table.
        meter: What to read of each step; default: its time.
        seat: Put around each contender's optimizer.
    """
    with closing(workload.make(mode)) as task:
        chosen = pick(contenders(task.optimizer, mode=mode, essential=essential))
        table["left_out"] = {name: why for name, c in chosen.items() if (why := refusal(c, task))}
        chosen = {name: c for name, c in chosen.items() if name not in table["left_out"]}
        samples = table.setdefault(column, {})
        if samples and samples.keys() != chosen.keys():
            raise BenchmarkError("the other implementations that are installed have changed; --overwrite starts anew")
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
        gc.freeze()  # collections then look at what the steps make only
        rotation = Rotation(
            list(chosen), samples, seconds=seconds, rounds=rounds, title=table["title"], save=save, meter=meter,
            unit=unit, units=None if unit is None else table.setdefault("unit", {}),
        )  # fmt: skip
        with closing(rotation):
            run(mode, task, chosen, rotation, seat)


def refusal(contender: Contender, task: Task) -> str | None:
    """Why a method takes no step here, as where it needs layers or a momentum that are not there; None if it does."""
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
