"""``sam-algos compare``: several trainings, one after the other or several processes at a time."""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_algos.command import Command, add_recipe
from sam_algos.command.ending import rank, resumable, stopping
from sam_algos.command.train import train

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

    from sam_algos.recipes import Recipe
    from sam_algos.recipes.results.comparison import Result
    from sam_algos.recipes.run import Run

_EPILOG = """\
examples:
  sam-algos compare mnist1d                                       four methods, three seeds, under two minutes
  sam-algos compare digits --methods sgd,sam,aesam,momentumsam_recalibrated --seeds 5
  sam-algos compare mine.yaml --methods adamw,aesam run_name=first autoresume=true

A method is a row of the recipe's table, or any method with its defaults. The optimizer's own name (sgd, adamw, ...)
trains without a method. The others are compared with the first. A recipe's `compare:` has the defaults.
Seeds start at 1000, or at seed=, so that settings chosen with small seeds are judged with others; each model is
evaluated once, after its last step. With a run_name and autoresume=true an interrupted comparison goes on.
"""

Entry = tuple[str, "Recipe"]
"""A method's name in the recipe, and what it is trained by."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, what="what to change in it, for every method")
    methods = "separated by commas; default: the recipe's, or else the plain optimizer and aesam"
    parser.add_argument("--methods", help=methods)
    seeds = "trainings of each method; default: the recipe's, or else 1"
    parser.add_argument("--seeds", type=_count, metavar="N", help=seeds)
    jobs = "trainings at a time, which share the CPU's threads; default: 2 on a CPU with several cores, else 1"
    parser.add_argument("--jobs", type=_count, metavar="N", help=jobs)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return int(text)


def _run(args: argparse.Namespace) -> int:
    """Train all, print the table and the conclusion, draw the picture."""
    entries = _entries(args)
    from sam_algos.recipes import find

    results = contest(entries, f"{find(args.recipe).label}-compare", args.jobs)
    if rank() != 0:
        return 0
    from sam_algos.recipes.results.comparison import conclusion, draw, rows, standings, table

    picture = results[0].folder.parent / "compare.png"
    if args.json:
        summary = {"table": standings(results), "conclusion": conclusion(results), "picture": str(picture)}
        print(json.dumps({"results": rows(results), **summary}, allow_nan=False), flush=True)
        draw(results, picture)
    else:
        print(f"\n{table(results)}\n", flush=True)  # before the picture, which may fail
        print(f"picture: {draw(results, picture)}\n\n{conclusion(results)}", flush=True)
    return 0


def _entries(args: argparse.Namespace) -> list[Entry]:
    """Every recipe that will be trained, all of them checked before the first is."""
    from sam_algos.recipes import RecipeError, check_names, comparison_of, load_recipe

    plan = comparison_of(args.recipe, args.overrides)
    methods, seeds = _methods(args, plan.methods), args.seeds or plan.seeds
    once = [] if any(o.startswith("eval_interval=") for o in args.overrides) else ["eval_interval=1dur"]
    found = []
    for seed in range(plan.first_seed, plan.first_seed + seeds):
        for method in methods:
            recipe = load_recipe(args.recipe, [*args.overrides, *once, f"method={method}", f"seed={seed}"])
            check_names(recipe)
            if recipe.bootstrap:
                raise RecipeError("bootstrap", f"{method} trains several times; compare trains each method once")
            found.append((method, _inside(recipe, method if seeds == 1 else f"{method}-seed{seed}")))
    name, resume = found[0][1].run_name, found[0][1].autoresume
    folder = Path(_pattern(found).format(run_name=name))
    if name is not None and not resume and folder.exists():  # another comparison would be mixed with this one
        raise RecipeError("run_name", f"{folder} exists; take another name, or go on with autoresume=true")
    return found


def _methods(args: argparse.Namespace, planned: Sequence[str]) -> list[str]:
    """What is compared."""
    from sam_algos.recipes import RecipeError, find, load_recipe

    given = find(args.recipe).method or next((o for o in args.overrides if o.startswith("method=")), None)
    if given is not None:
        raise RecipeError("--methods", f"says what is compared: write --methods sgd,{given.removeprefix('method=')}")
    if args.methods is None:
        return list(planned) or [load_recipe(args.recipe, [*args.overrides, "method=null"]).optimizer["name"], "aesam"]
    methods = dict.fromkeys(name.strip() for name in args.methods.split(",") if name.strip())
    if not methods:
        raise RecipeError("--methods", "names no method")
    return list(methods)


def _inside(recipe: Recipe, leaf: str) -> Recipe:
    """The recipe of one training, with its own folders below those of the comparison."""
    folder, saves = Path(recipe.run_folder, leaf), recipe.save_folder
    if saves is not None and Path(saves).is_relative_to(recipe.run_folder):
        saves = str(folder / Path(saves).relative_to(recipe.run_folder))
    elif saves is not None:
        saves = f"{saves}/{leaf}"
    return replace(recipe, run_folder=str(folder), save_folder=saves)


def _pattern(entries: Sequence[Entry]) -> str:
    """The folder of the comparison, with ``{run_name}`` in it."""
    return str(Path(entries[0][1].run_folder).parent)


def contest(entries: Sequence[Entry], name: str, jobs: int | None) -> list[Result]:
    """Train all entries of a comparison.

    All have the same ``run_name``, which begins with `name` if it is automatic, and each has its own folder. The
    results are the same for all `jobs` that leave a training as many threads.

    Raises:
        RecipeError: For whatever is wrong with a recipe, and for several jobs on a GPU or under a launcher.
    """
    import torch

    from sam_algos.recipes import RecipeError

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    device = entries[0][1].device
    on_cpu = device == "cpu" or (device is None and not torch.cuda.is_available())
    alone = not on_cpu or int(os.environ.get("WORLD_SIZE", 1)) > 1
    if alone and jobs is not None and jobs > 1:
        raise RecipeError("--jobs", f"must be 1 on a GPU and with several processes a training, got {jobs}")
    jobs = jobs or (1 if alone or cores == 1 else 2)
    # Sums over threads differ in their last bits with the number of threads, so one job takes no more than each of two.
    threads = max(1, cores // max(2, jobs)) if on_cpu and "OMP_NUM_THREADS" not in os.environ else None
    if jobs == 1:
        return _one_by_one(entries, name, threads)
    return _side_by_side(entries, name, min(jobs, len(entries)), threads)


def _one_by_one(entries: Sequence[Entry], name: str, threads: int | None) -> list[Result]:
    _use(threads)
    results: list[Result] = []
    run_name = entries[0][1].run_name
    for number, (method, recipe) in enumerate(entries, 1):
        if rank() == 0:
            print(f"[{number}/{len(entries)}] {_title((method, recipe))}", file=sys.stderr, flush=True)
        done = train(replace(recipe, run_name=run_name), name)
        run_name = done.trainer.state.run_name  # the first chooses the name of all
        results.append(_result_of(done, method))
    return results


def _side_by_side(entries: Sequence[Entry], name: str, jobs: int, threads: int | None) -> list[Result]:
    from concurrent.futures import FIRST_COMPLETED, wait

    from tqdm import tqdm

    results: dict[int, Result] = {}
    with (
        _named(entries, name) as entries,
        _pool(jobs, threads) as pool,
        tqdm(total=len(entries), unit="run", disable=None) as bar,
    ):
        todo, going = list(enumerate(entries)), {}
        while todo or going:
            while todo and len(going) < jobs:  # no more, so that the bar names those that are trained
                number, entry = todo.pop(0)
                going[pool.submit(_train, *entry)] = number
            bar.set_description(", ".join(_title(entries[number]) for number in going.values()))
            for future in wait(going, return_when=FIRST_COMPLETED).done:
                title = _title(entries[number := going.pop(future)])
                if isinstance(future.exception(), Exception):
                    bar.write(f"failed: {title}", file=sys.stderr)
                results[number] = future.result()
                bar.update()
                bar.write(f"[{len(results)}/{len(entries)}] {title}: {results[number].shown}", file=sys.stderr)
    return [results[number] for number in range(len(entries))]


def _title(entry: Entry) -> str:
    return f"{entry[0]}, seed {entry[1].seed}"


@contextmanager
def _named(entries: Sequence[Entry], name: str) -> Iterator[list[Entry]]:
    """The entries with the run name that all share."""
    from sam_algos.recipes.results.folders import claim_folder, remove_empty

    pattern, chosen, made = _pattern(entries), entries[0][1].run_name, []
    if chosen is None and "{run_name" in pattern:
        chosen, made = claim_folder(pattern, None, name)
    try:
        yield [(method, replace(recipe, run_name=chosen)) for method, recipe in entries]
    except BaseException:
        remove_empty(made)  # unless some training has left its files there
        if chosen is not None and Path(pattern.format(run_name=chosen)).exists():
            resumable(chosen)
        raise


@contextmanager
def _pool(jobs: int, threads: int | None) -> Iterator[ProcessPoolExecutor]:
    """Processes to train in; after an error or a signal they end at once, each training with its files in order."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(threads,))
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown()
        signal.signal(signal.SIGTERM, before)


def _start(threads: int | None) -> None:
    """Set up a process of the pool."""
    import_module("sam_algos.recipes.run")  # first, as Composer sets signal handlers of its own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the first process ends the others
    _use(threads)
    gc.freeze()  # or every full collection goes through all that Composer has imported


def _use(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def _train(method: str, recipe: Recipe) -> Result:
    """Train in a process of the pool."""
    with stopping():
        return _result_of(train(recipe, method, quiet=True), method)


def _result_of(run: Run, row: str) -> Result:
    """The result of a training, free of references to its Trainer."""
    from sam_algos import Interval, Late, Method  # imports Composer, which the first process may not need
    from sam_algos.recipes.naming.names import spelling
    from sam_algos.recipes.results.comparison import Result

    state, recipe = run.trainer.state, run.settings
    method = next((algorithm for algorithm in state.algorithms if isinstance(algorithm, Method)), None)
    name = type(state.optimizers[0] if method is None else method).__name__
    data: Any = state.evaluators[0].dataloader.dataloader
    part = "evaluation data" if recipe.eval_dataset else f"{recipe.train_dataset.get('evaluate', 'test')} data"
    return Result(
        row, recipe.seed, Path(run.folder), run.summary(),
        title=(getattr(method, "title", "") or name) if spelling(name) == spelling(row) else row,
        decides=method is not None and not isinstance(method.composition().policy, (Interval, Late)),
        evaluated_on=f"{part} ({len(data.dataset):,} samples)",
    )  # fmt: skip


COMMANDS = {"compare": Command(_EPILOG, _add_arguments, _run)}
