"""``sam-algos train``: train, and print a table."""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any

from sam_algos.command import Command, add_recipe, recipe_of
from sam_algos.command.ending import rank, running
from sam_algos.recipes.schema import describe

if TYPE_CHECKING:
    from sam_algos.recipes import Recipe
    from sam_algos.recipes.run import Run

_EPILOG = f"""\
examples:
  sam-algos train digits
  sam-algos train digits/sam                       the same as: sam-algos train digits method=sam
  sam-algos train digits max_duration=20ep algorithms.aesam.rho=0.1
  sam-algos train digits method=sam algorithms.mixup.alpha=0.2 algorithms.label_smoothing=null
  sam-algos train mine.yaml run_name=first autoresume=true
  composer -n 2 -m sam_algos.train cifar10/wrn28_10/sam variables.data_path=/data

keys of a recipe and of overrides (dotted: section.key=value):
{describe()}"""


def _run(args: argparse.Namespace) -> int:
    from sam_algos.recipes import find

    start = time.perf_counter()
    done = train(recipe_of(args), find(args.recipe).label)
    if rank() == 0:
        rows = _json(done) if args.json else _table(done, time.perf_counter() - start)
        print(rows, flush=True)
    return 0


def train(recipe: Recipe, label: str, *, quiet: bool = False) -> Run:
    """Train a recipe, with all rounds of its ``bootstrap``; an automatic run name begins with `label`."""
    from sam_algos.recipes.run import trainings  # imports Composer, which takes seconds

    # Composer warns where rounding keeps smoothed and mixed labels from adding up to one.
    warnings.filterwarnings("ignore", message="Some targets have less than 1 total probability")
    return deque((_fitted(run, quiet) for run in trainings(recipe, label)), maxlen=1).pop()


def _fitted(run: Run, quiet: bool) -> Run:
    running(run)
    if quiet:
        run.progress.silence()
    run.fit()
    return run


def _table(run: Run, seconds: float) -> str:
    summary = run.summary()
    plain, sharp, found = summary.plain_seconds, summary.sharp_seconds, summary.headline
    rows = {
        "clean test accuracy" if found is None or found.name == "accuracy" else f"test {found.name}": (
            "-" if found is None else found.shown
        ),
        **{f"labels, round {number}": line for number, line in enumerate(run.relabellings, 1)},
        "SAM fraction": f"{100 * summary.fraction:.1f} %",
        "gradients": f"{summary.gradients:.0f} in {summary.steps} steps",
        "plain step (median)": "-" if plain is None else f"{1000 * plain:.2f} ms",
        "sharp step (median)": "-" if sharp is None else f"{1000 * sharp:.2f} ms",
        "wall clock": f"{seconds:.1f} s",
        "log": run.log,
        "recipe": run.recipe,
        "checkpoint": run.checkpoint or "-",
    }
    return "\n".join(f"{name:<20} {value}" for name, value in rows.items())


def _json(run: Run) -> str:
    summary = vars(run.summary())
    found = summary.pop("headline")
    files = {"log": str(run.log), "recipe": str(run.recipe), "checkpoint": run.checkpoint}
    result: dict[str, Any] = {"metric": found and found.name, "value": found and found.value, **summary, **files}
    return json.dumps(result)


COMMANDS = {"train": Command(_EPILOG, add_recipe, _run)}
