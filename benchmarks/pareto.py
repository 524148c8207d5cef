"""Accuracy against wall-clock: a recipe trained with each method, over several seeds."""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from composer import Callback, Logger, State
from tqdm import tqdm

from benchmarks.environment import load_average
from benchmarks.results import BenchmarkError, Result
from benchmarks.summary import interval
from benchmarks.workloads import build, plain_recipe
from sam_algos import METHODS
from sam_algos.recipes import Recipe, RecipeError, load_recipe

PLAIN, TWICE = "plain", "plain, twice the epochs"


def settings(args: Namespace) -> dict[str, Any]:
    """What decides what is measured; the number of seeds may grow."""
    overrides = [*(["max_duration=10ep"] if args.quick else []), *args.overrides]
    return {"recipe": args.recipe, "overrides": overrides, "methods": args.methods}


def measure(args: Namespace, result: Result) -> None:
    """Train what has not been trained yet, one seed of every method after the other.

    Raises:
        BenchmarkError: If something is wrong with the recipe or the methods.
    """
    recipes = dict(_recipes(args.recipe_path, settings(args)["overrides"], args.methods))
    runs = result.data.setdefault("runs", [])
    done = {(run["method"], run["seed"]) for run in runs}
    order = [(name, i) for i in range(args.seeds) for name in _turned(list(recipes), i)]
    wanted = [(name, recipes[name].seed + i) for name, i in order]
    left = [run for run in wanted if run not in done]
    if left:
        train(replace(recipes[PLAIN], max_duration="2ba"))  # the first training in a process is slower
    for name, seed in tqdm(left, desc="pareto", unit="run", disable=None):
        runs.append({"method": name, "seed": seed, **train(replace(recipes[name], seed=seed))})
        update(result)


def _turned(names: list[str], by: int) -> list[str]:
    """The names in an order of its own for each seed; the plain one, which sets the target, is the first."""
    others = [name for name in names if name != PLAIN]
    by %= len(others)
    return [PLAIN, *others[by:], *others[:by]]


def _recipes(path: Path, overrides: Sequence[str], methods: Sequence[str] | None) -> Iterator[tuple[str, Recipe]]:
    """The recipe without a method, for its own and for twice its time, and with each method.

    A method's arguments are those of the recipe called after it that lies beside this one, or its defaults.
    """
    plain = plain_recipe(path, overrides)
    yield PLAIN, plain
    yield TWICE, replace(plain, max_duration=twice(plain.max_duration))
    for name in methods or METHODS:
        if name not in METHODS:
            raise BenchmarkError(f"--methods {name}: must be one of {', '.join(METHODS)}")
        beside = path.with_name(f"{name}.yaml")
        try:
            options = load_recipe(beside, overrides).algorithms[name] if beside.exists() else {}
        except (RecipeError, KeyError) as error:
            raise BenchmarkError(f"{beside}: {error}") from error
        yield name, replace(plain, algorithms={**plain.algorithms, name: options})


def twice(duration: int | str) -> int | str:
    """A duration twice as long.

    Example:
        >>> twice("40ep"), twice(3)
        ('80ep', 6)
    """
    if isinstance(duration, int):
        return 2 * duration
    return re.sub(r"^\d+", lambda number: str(2 * int(number[0])), duration)


class _Curve(Callback):
    """Times training without evaluation, and keeps each evaluation's accuracy with the time till then."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self.points: list[list[float]] = []
        self._since = 0.0, 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        self._go_on()

    def eval_start(self, state: State, logger: Logger) -> None:
        self.pause()

    def eval_end(self, state: State, logger: Logger) -> None:
        accuracy = state.eval_metrics["eval"]["MulticlassAccuracy"].compute()
        self.points.append([round(self.seconds, 4), round(float(accuracy), 6)])
        self._go_on()

    def _go_on(self) -> None:
        self._since = time.perf_counter(), time.process_time()

    def pause(self) -> None:
        wall, cpu = self._since
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu


def train(recipe: Recipe) -> dict[str, Any]:
    """Train one recipe once, and say how accurate it was and what it took."""
    curve = _Curve()
    with tempfile.TemporaryDirectory() as folder:
        run = build(recipe, folder)
        run.trainer.state.callbacks.append(curve)
        run.trainer.fit()
        run.trainer.close()
    second = getattr(run.trainer.state.optimizers[0], "_ascent_fraction", 1.0)  # of a gradient, on a sharp step
    return {
        "seconds": round(curve.seconds, 4), "cpu_seconds": round(curve.cpu_seconds, 4),
        "gradients": 1 + run.times.fraction * second, "steps": sum(map(len, run.times.seconds.values())),
        "accuracy": curve.points[-1][1], "curve": curve.points, "load": load_average()[0],
    }  # fmt: skip


def update(result: Result) -> None:
    """Summarise what was measured, and write it down."""
    result.summary = summarize(result.data["runs"])
    result.save()


def summarize(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The numbers of every method.

    Args:
        runs: The trainings, those of the plain optimizer among them.

    Returns:
        dict: ``target``, the mean over seeds of the plain optimizer's best accuracy, and ``rows`` by method:
        mean and half width of the 95 % interval of ``accuracy`` after the last step and of ``seconds``;
        ``gradients`` per step, and ``work``, the gradients of the whole training where those of the plain one
        are 1; ``to_target``, the median seconds of those seeds that got there, and how many did.
    """
    best = [max(accuracy for _, accuracy in run["curve"]) for run in runs if run["method"] == PLAIN]
    target = statistics.fmean(best)
    plain_steps = statistics.fmean(run["steps"] for run in runs if run["method"] == PLAIN)
    rows = {}
    for method in dict.fromkeys(run["method"] for run in runs):
        own = [run for run in runs if run["method"] == method]
        times = [t for run in own if (t := _time_to(target, run["curve"])) is not None]
        rows[method] = {
            "n": len(own),
            "accuracy": interval([run["accuracy"] for run in own]),
            "best": interval([max(accuracy for _, accuracy in run["curve"]) for run in own]),
            "seconds": interval([run["seconds"] for run in own]),
            "cpu_seconds": interval([run["cpu_seconds"] for run in own]),
            "gradients": statistics.fmean(run["gradients"] for run in own),
            "work": statistics.fmean(run["gradients"] * run["steps"] for run in own) / plain_steps,
            "to_target": statistics.median(times) if times else None,
            "reached": len(times),
        }
    return {"target": target, "rows": rows}


def _time_to(target: float, curve: Sequence[Sequence[float]]) -> float | None:
    return next((seconds for seconds, accuracy in curve if accuracy >= target), None)
