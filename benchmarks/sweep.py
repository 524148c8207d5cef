"""Accuracy against one option of a recipe: where a default comes from."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from benchmarks.pareto import train
from benchmarks.results import BenchmarkError, Result
from benchmarks.summary import interval
from sam_algos.recipes import Recipe, RecipeError, load_recipe


def settings(args: Namespace) -> dict[str, Any]:
    """What decides what is measured; the number of seeds may grow."""
    overrides = [*(["max_duration=10ep"] if args.quick else []), *args.overrides]
    return {"recipe": args.recipe, "overrides": overrides, "key": args.key, "values": args.values}


def measure(args: Namespace, result: Result) -> None:
    """Train what has not been trained yet, one seed of every value after the other.

    Raises:
        BenchmarkError: If something is wrong with the recipe or a value.
    """
    runs = result.data.setdefault("runs", [])
    done = {(run["value"], run["index"]) for run in runs}
    wanted = [(value, index) for index in range(args.seeds) for value in args.values]
    recipes = {(value, index): _recipe(args, value, index) for value, index in wanted}
    left = [run for run in wanted if run not in done]
    for value, index in tqdm(left, desc="sweep", unit="run", disable=None):
        runs.append({"value": value, "index": index, **train(recipes[value, index])})
        result.summary = summarize(args.key, runs)
        result.save()


def _recipe(args: Namespace, value: str, index: int) -> Recipe:
    overrides = [*settings(args)["overrides"], f"{args.key}={value}"]
    try:
        first = load_recipe(args.recipe_path, overrides).seed
        return load_recipe(args.recipe_path, [*overrides, f"seed={first + index}"])
    except RecipeError as error:
        raise BenchmarkError(str(error)) from error


def summarize(key: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The accuracy of every value, as mean and half width of the 95 % interval over seeds."""
    rows = {}
    for value in dict.fromkeys(run["value"] for run in runs):
        own = [run for run in runs if run["value"] == value]
        rows[value] = {
            "n": len(own),
            "accuracy": interval([run["accuracy"] for run in own]),
            "gradients": sum(run["gradients"] for run in own) / len(own),
        }
    return {"key": key, "rows": rows}
