"""``sam-algos compare``."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam_algos.command.arguments import add_json, add_recipe
from sam_algos.command.ending import rank

if TYPE_CHECKING:
    from sam_algos.recipes import Recipe

EPILOG = """\
examples:
  sam-algos compare mnist1d                                       four methods, three seeds, under two minutes
  sam-algos compare digits --methods sgd,sam,aesam,momentumsam_recalibrated --seeds 5
  sam-algos compare mine.yaml --methods adamw,aesam run_name=first autoresume=true

A method is a row of the recipe's table, or any method with its defaults; the recipe's own optimizer (sgd, adamw,
...) trains without one. The first is what the others are compared with. A recipe's `compare:` has the defaults.
Seeds start at 1000, or at seed=, so that settings chosen with small seeds are judged with others; each model is
evaluated once, after its last step. With a run_name and autoresume=true an interrupted comparison goes on.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_recipe(parser, what="what to change in it, for every method")
    parser.add_argument(
        "--methods", help="separated by commas; default: the recipe's, or else the plain optimizer and aesam"
    )
    parser.add_argument(
        "--seeds", type=_count, metavar="N", help="trainings of each method; default: the recipe's, or else 1"
    )
    parser.add_argument(
        "--jobs", type=_count, metavar="N",
        help="trainings at a time, which share the CPU's threads; default: 2 on a CPU with several cores, else 1",
    )  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Train all, print the table and what it says, draw the picture."""
    recipes = _recipes(args)
    from sam_algos.command.contest import contest
    from sam_algos.recipes import find

    results = contest(recipes, f"{find(args.recipe).label}-compare", args.jobs)
    if rank() != 0:
        return 0
    from sam_algos.recipes.comparison import conclusion, draw, rows, standings, table

    picture = results[0].folder.parent / "compare.png"
    if args.json:
        summary = {"table": standings(results), "conclusion": conclusion(results), "picture": str(picture)}
        print(json.dumps({"results": rows(results), **summary}, allow_nan=False), flush=True)
        draw(results, picture)
    else:
        print(f"\n{table(results)}\n", flush=True)  # before the picture, which may fail
        print(f"picture: {draw(results, picture)}\n\n{conclusion(results)}", flush=True)
    return 0


def _methods(args: argparse.Namespace, planned: tuple[str, ...]) -> list[str]:
    """What is compared."""
    from sam_algos.recipes import RecipeError, find, load_recipe

    given = find(args.recipe).method or next((o for o in args.overrides if o.startswith("method=")), None)
    if given is not None:
        raise RecipeError("--methods", f"says what is compared: write --methods sgd,{given.removeprefix('method=')}")
    if args.methods is None and planned:
        return list(planned)
    if args.methods is None:
        return [load_recipe(args.recipe, [*args.overrides, "method=null"]).optimizer["name"], "aesam"]
    methods = dict.fromkeys(name.strip() for name in args.methods.split(",") if name.strip())
    if not methods:
        raise RecipeError("--methods", "names no method")
    return list(methods)


def _recipes(args: argparse.Namespace) -> list[tuple[str, Recipe]]:
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
    _refuse_another(found[0][1])
    return found


def _refuse_another(recipe: Recipe) -> None:
    """Refuse the folder of another comparison, which would be mixed with this one."""
    from sam_algos.recipes import RecipeError

    folder = Path(recipe.run_folder.format(run_name=recipe.run_name)).parent
    if recipe.run_name is not None and not recipe.autoresume and folder.exists():
        raise RecipeError("run_name", f"{folder} exists; take another name, or go on with autoresume=true")


def _inside(recipe: Recipe, leaf: str) -> Recipe:
    """`recipe` with folders of its own, below those of the comparison."""
    folder, saves = Path(recipe.run_folder, leaf), recipe.save_folder
    if saves is not None and Path(saves).is_relative_to(recipe.run_folder):
        saves = str(folder / Path(saves).relative_to(recipe.run_folder))
    elif saves is not None:
        saves = f"{saves}/{leaf}"
    return replace(recipe, run_folder=str(folder), save_folder=saves)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return int(text)
