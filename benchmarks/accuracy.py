"""A recipe trained with several methods, or with several values of an option, over several seeds."""

from __future__ import annotations

import re
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from composer import Callback, Logger, State
from tqdm import tqdm

from benchmarks.environment import load_average
from benchmarks.names import users_name
from benchmarks.results import BenchmarkError, Result, rounded
from benchmarks.summary import PLAIN, TWICE
from benchmarks.trainer import build, plain_recipe, read_recipe
from sam_algos import METHODS
from sam_algos.recipes import Recipe

Variant = Callable[[Sequence[str]], Recipe]
"""Makes a recipe from overrides."""


def settings(args: Namespace) -> dict[str, Any]:
    """What decides what is measured; the number of seeds may grow."""
    overrides = [*(["max_duration=10ep"] if args.quick else []), *args.overrides]
    return {
        "recipe": args.recipe,
        "overrides": overrides,
        **{k: getattr(args, k) for k in ("methods", "key", "values")},
    }


def measure(args: Namespace, result: Result) -> None:
    """Train what has not been trained yet, one seed of every variant after the other."""
    chosen = dict(variants(args.recipe_path, **{k: v for k, v in settings(args).items() if k != "recipe"}))
    first, *_ = [make(()) for make in chosen.values()]  # all, so that what is wrong with any is found now
    runs = result.data.setdefault("runs", [])
    done = {(run["variant"], run["seed"]) for run in runs}
    wanted = [(name, first.seed + i) for i in range(args.seeds) for name in _turned(list(chosen), i)]
    left = [run for run in wanted if run not in done]
    if left:
        train(replace(first, max_duration="2ba"))  # the first training in a process is slower
    for name, seed in tqdm(left, desc="accuracy", unit="run", disable=None):
        runs.append({"variant": name, "seed": seed, **train(chosen[name]([f"seed={seed}"]))})
        result.save()


def _turned(names: list[str], by: int) -> list[str]:
    """The names in an order of its own for each seed; the first of them, to which the others are compared, first."""
    first, *others = names
    by %= len(others) or 1
    return [first, *others[by:], *others[:by]]


def variants(
    path: Path, overrides: Sequence[str], methods: Sequence[str] | None, key: str | None, values: Sequence[str] | None
) -> Iterator[tuple[str, Variant]]:
    """What is to be trained, by name.

    Without a key: the recipe without a method, for its own and for twice its time, and with each method, whose
    arguments are those of the recipe called after it that lies beside this one, or its defaults. With a key: the
    recipe as it is, with each value; with methods too, each method with each value.
    """
    for name in methods or ():
        if name not in METHODS:
            raise BenchmarkError(f"--methods {name}: must be one of {', '.join(METHODS)}")
    for value in values or [""]:
        given = [*overrides, *([f"{key}={value}"] if key else [])]
        if key and not methods:
            yield value, lambda more, given=given: read_recipe(path, [*given, *more])
            continue
        suffix = f", {value}" if key else ""
        yield PLAIN + suffix, lambda more, given=given: plain_recipe(path, [*given, *more])
        if not key:
            yield TWICE, lambda more, given=given: _twice(plain_recipe(path, [*given, *more]))
        for name in methods or METHODS:
            yield users_name(name) + suffix, lambda more, name=name, given=given: _with(path, name, [*given, *more])


def _with(path: Path, name: str, overrides: Sequence[str]) -> Recipe:
    """The recipe without its method, but with that of the recipe beside it."""
    plain, beside = plain_recipe(path, overrides), path.with_name(f"{name}.yaml")
    found = read_recipe(beside, overrides).algorithms if beside.exists() else {name: {}}
    if name not in found:
        raise BenchmarkError(f"{beside}: has no algorithms.{name}")
    return replace(plain, algorithms={**plain.algorithms, name: found[name]})


def _twice(recipe: Recipe) -> Recipe:
    return replace(recipe, max_duration=twice(recipe.max_duration))


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
        self.gradients: list[float] = []
        self._since = 0.0, 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        self._go_on()

    def batch_end(self, state: State, logger: Logger) -> None:
        metrics = getattr(state.optimizers[0], "metrics", {})
        self.gradients.append(float(metrics.get("sam/gradients", 1 + metrics.get("sam/applied", 0))))

    def eval_start(self, state: State, logger: Logger) -> None:
        wall, cpu = self._since
        self.seconds += time.perf_counter() - wall
        self.cpu_seconds += time.process_time() - cpu

    def eval_end(self, state: State, logger: Logger) -> None:
        accuracy = state.eval_metrics["eval"]["MulticlassAccuracy"].compute()
        self.points.append([rounded(self.seconds), rounded(float(accuracy))])
        self._go_on()

    def _go_on(self) -> None:
        self._since = time.perf_counter(), time.process_time()


def train(recipe: Recipe) -> dict[str, Any]:
    """Train one recipe once, and say how accurate it was and what it took."""
    curve = _Curve()
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(recipe, folder).trainer
        trainer.state.callbacks.append(curve)
        trainer.fit()
        trainer.close()
    return {
        "seconds": rounded(curve.seconds), "cpu_seconds": rounded(curve.cpu_seconds),
        "gradients": rounded(fmean(curve.gradients)), "steps": len(curve.gradients),
        "accuracy": curve.points[-1][1], "curve": curve.points, "load": load_average()[0],
    }  # fmt: skip
