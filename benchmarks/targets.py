"""Requested costs against measured costs: fractions of sharp steps, and time over plain training."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from benchmarks.results import Result, rounded
from benchmarks.summary import PLAIN
from benchmarks.trainer import plain_recipe, watched
from sam_algos.recipes import Recipe

METHOD = "aesam"
TARGETS = {"target_fraction": (0.1, 0.2, 0.5), "target_overhead": (0.05, 0.1, 0.25)}
FROM = 100  # the fraction is guaranteed from this step on


def settings(args: Namespace) -> dict[str, Any]:
    """The settings of the measurement. The number of seeds is not among them, as it may grow."""
    overrides = [*(["max_duration=10ep"] if args.quick else []), *args.overrides]
    return {"recipe": args.recipe, "overrides": overrides}


def measure(args: Namespace, result: Result) -> None:
    """Train the missing runs, one seed after the other."""
    overrides = settings(args)["overrides"]
    runs = result.data.setdefault("runs", [])
    seed = plain_recipe(args.recipe, overrides).seed
    wanted = [(seed + i, turn, variant) for i in range(args.seeds) for turn, variant in enumerate(turns())]
    done = {(run["seed"], run["turn"]) for run in runs}
    left = [run for run in wanted if run[:2] not in done]
    if left:  # the first training in a process is slower
        watched(replace(plain_recipe(args.recipe, overrides), max_duration="2ba"))
    for seed, turn, variant in tqdm(left, desc="targets", unit="run", disable=None):
        found = train(_recipe(args.recipe, variant, [*overrides, f"seed={seed}"]))
        runs.append({"variant": variant, "seed": seed, "turn": turn, **found})
        result.save()


def turns() -> Iterator[str]:
    """The variants in training order, with plain runs before and after each timed variant."""
    for value in TARGETS["target_fraction"]:
        yield f"target_fraction={value}"
    yield PLAIN
    for value in TARGETS["target_overhead"]:
        yield f"target_overhead={value}"
        yield PLAIN


def _recipe(path: str, variant: str, overrides: list[str]) -> Recipe:
    if variant == PLAIN:
        return plain_recipe(path, overrides)
    name, value = variant.split("=")
    recipe = plain_recipe(path, overrides)
    return replace(recipe, algorithms={**recipe.algorithms, METHOD: {name: float(value)}})


def train(recipe: Recipe) -> dict[str, Any]:
    """Train a recipe once; return its seconds, and the fraction of sharp steps early, at the end, and its extremes."""
    meter = watched(recipe)
    sharp = [gradients - 1 for gradients in meter.gradients]
    fractions = [sum(sharp[:t]) / t for t in range(1, len(sharp) + 1)]
    since = fractions[FROM - 1 :] or fractions[-1:]
    return {
        "seconds": rounded(meter.seconds), "steps": len(sharp), "early": rounded(since[0]),
        "fraction": rounded(fractions[-1]), "least": rounded(min(since)), "most": rounded(max(since)),
    }  # fmt: skip
