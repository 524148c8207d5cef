"""The trainings of a comparison: one after the other, or several processes at a time."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from sam_algos.command.ending import rank, resumable, stopping
from sam_algos.command.train import train
from sam_algos.recipes.comparison import Result
from sam_algos.recipes.errors import RecipeError
from sam_algos.recipes.naming.names import spelling
from sam_algos.recipes.schema import Recipe

if TYPE_CHECKING:
    from sam_algos.recipes.run import Run

Entry = tuple[str, Recipe]
"""A method's name in the recipe, and what it is trained by."""


def contest(entries: Sequence[Entry], name: str, jobs: int | None) -> list[Result]:
    """Train all entries of a comparison.

    Args:
        entries (Sequence[Entry]): All with the same ``run_name``, each with a folder of its own below the comparison's.
        name (str): What a comparison without a ``run_name`` is called, before the time.
        jobs (int | None): Processes at a time. None is 2 on a CPU with several cores, and 1 otherwise.

    Returns:
        list[Result]: In the order of the entries, and the same for any `jobs` that leaves a training as many threads.

    Raises:
        RecipeError: For whatever is wrong with a recipe, and for several jobs on a GPU or under a launcher.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    device = entries[0][1].device
    on_cpu = device == "cpu" or (device is None and not torch.cuda.is_available())
    alone = not on_cpu or int(os.environ.get("WORLD_SIZE", 1)) > 1
    if alone and jobs is not None and jobs > 1:
        raise RecipeError("--jobs", f"must be 1 on a GPU and with several processes a training, got {jobs}")
    jobs = jobs or (1 if alone or cores == 1 else 2)
    # Sums over threads differ in their last bits with the number of threads, so one job takes no more than each of two.
    threads = max(1, cores // max(2, jobs)) if on_cpu and "OMP_NUM_THREADS" not in os.environ else None
    if jobs == 1 or alone:
        return _one_by_one(entries, name, threads)
    return _side_by_side(entries, name, min(jobs, len(entries)), threads)


def _one_by_one(entries: Sequence[Entry], name: str, threads: int | None) -> list[Result]:
    _use(threads)
    results: list[Result] = []
    run_name = entries[0][1].run_name
    for number, (method, recipe) in enumerate(entries, 1):
        if rank() == 0:
            print(f"[{number}/{len(entries)}] {method}, seed {recipe.seed}", file=sys.stderr, flush=True)
        done = train(replace(recipe, run_name=run_name), name)
        run_name = done.trainer.state.run_name  # the first chooses the name of all
        results.append(_result_of(done, method))
    return results


def _side_by_side(entries: Sequence[Entry], name: str, jobs: int, threads: int | None) -> list[Result]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start, initargs=(threads,))
    results: dict[int, Result] = {}
    with (
        _named(entries, name) as entries,
        _terminable(),
        _stopped(pool),
        tqdm(total=len(entries), unit="run", disable=None) as bar,
    ):
        todo, going = list(enumerate(entries)), {}
        while todo or going:
            while todo and len(going) < jobs:  # no more, so that the bar names those that are trained
                number, entry = todo.pop(0)
                going[pool.submit(_train, *entry)] = number
            bar.set_description(", ".join(_title(entries[number]) for number in going.values()))
            for number, result in _finished(going, entries):
                results[number] = result
                bar.update()
                bar.write(f"[{len(results)}/{len(entries)}] {_title(entries[number])}: {result.shown}", file=sys.stderr)
    return [results[number] for number in range(len(entries))]


def _finished(going: dict[Future[Result], int], entries: Sequence[Entry]) -> Iterator[tuple[int, Result]]:
    for future in wait(going, return_when=FIRST_COMPLETED).done:
        number = going.pop(future)
        if isinstance(future.exception(), Exception):
            tqdm.write(f"failed: {_title(entries[number])}", file=sys.stderr)
        yield number, future.result()


def _title(entry: Entry) -> str:
    return f"{entry[0]}, seed {entry[1].seed}"


@contextmanager
def _named(entries: Sequence[Entry], name: str) -> Iterator[list[Entry]]:
    """The entries with the run name that all share."""
    recipe = entries[0][1]
    pattern, chosen, made = str(Path(recipe.run_folder).parent), recipe.run_name, ()
    if chosen is None and "{run_name" in pattern:
        chosen, made = _claimed(pattern, f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    try:
        yield [(method, replace(recipe, run_name=chosen)) for method, recipe in entries]
    except BaseException:
        for folder in made:
            with suppress(OSError):  # some training has left its files there
                folder.rmdir()
        if chosen is not None and Path(pattern.format(run_name=chosen)).exists():
            resumable(chosen)
        raise


def _claimed(pattern: str, own: str) -> tuple[str, tuple[Path, ...]]:
    """A name that no other comparison has, and the folders made for it: making one tells who of two was first."""
    number, chosen = 1, own
    while True:
        folder = Path(pattern.format(run_name=chosen))
        missing = tuple(path for path in (folder, *folder.parents) if not path.exists())
        try:
            folder.mkdir(parents=True)
            return chosen, missing
        except FileExistsError:
            number += 1
            chosen = f"{own}-{number}"
        except OSError:  # the first training says so in one line
            return own, ()


@contextmanager
def _terminable() -> Iterator[None]:
    """End by an exception when terminated, so that the processes of the pool end, too."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _stopped(pool: ProcessPoolExecutor) -> Iterator[None]:
    """End the pool; after an error or an interrupt at once, each training with its files in order."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    finally:
        pool.shutdown()


def _start(threads: int | None) -> None:
    """Set up a process of the pool."""
    import_module("sam_algos.recipes.bootstrap")  # first, as Composer sets signal handlers of its own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the first process ends the others
    _use(threads)
    gc.freeze()  # else every full collection goes through all that Composer has imported


def _use(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def _train(method: str, recipe: Recipe) -> Result:
    with stopping():
        return _result_of(train(recipe, method, quiet=True), method)


def _result_of(run: Run, row: str) -> Result:
    """The result of a training, free of references to its Trainer."""
    from sam_algos import Interval, Late, Method  # imports Composer, which this process may not need

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
