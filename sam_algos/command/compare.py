"""``sam-algos compare``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam_algos.command.arguments import add_json, add_recipe, add_traceback
from sam_algos.command.ending import rank
from sam_algos.command.train import train

if TYPE_CHECKING:
    from sam_algos.recipes import Recipe
    from sam_algos.recipes.comparison import Result

_EXAMPLES = """\
examples:
  sam-algos compare digits                                        plain SGD and AE-SAM, about a minute
  sam-algos compare digits --methods sgd,sam,aesam,momentumsam_recalibrated --seeds 5
  sam-algos compare mine.yaml --methods adamw,aesam run_name=first autoresume=true

A method is a row of the recipe's table, or any method with its defaults; the optimizer's name is none. Each is
trained once a seed, one after the other; what is done stays, and with a run_name and autoresume=true an
interrupted comparison goes on.
"""


def epilog() -> str:
    """The examples."""
    return _EXAMPLES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_recipe(parser, what="what to change in it, for every method")
    parser.add_argument("--methods", help="separated by commas; default: the recipe's optimizer alone, and aesam")
    parser.add_argument("--seeds", type=_count, default=1, metavar="N", help="trainings of each method; default: 1")
    add_json(parser)
    add_traceback(parser)


def run(args: argparse.Namespace) -> int:
    """Train all, print the table, draw the picture."""
    recipes = _recipes(args, _methods(args))
    results = _trained(recipes, args.recipe)
    if rank() != 0:
        return 0
    from sam_algos.recipes.comparison import draw, rows, table

    picture = draw(results, results[0].folder.parent / "compare.png")
    if args.json:
        print(json.dumps({"results": rows(results), "picture": str(picture)}))
    else:
        print(f"\n{table(results)}\n\npicture: {picture}", flush=True)
    return 0


def _methods(args: argparse.Namespace) -> list[str]:
    from sam_algos.recipes import RecipeError, load_recipe

    if args.methods is None:
        return [load_recipe(args.recipe, [*args.overrides, "method=null"]).optimizer["name"], "aesam"]
    methods = list(dict.fromkeys(name.strip() for name in args.methods.split(",") if name.strip()))
    if not methods:
        raise RecipeError("--methods", "names no method")
    return methods


def _recipes(args: argparse.Namespace, methods: list[str]) -> list[tuple[str, Recipe]]:
    """Every recipe that will be trained, all of them checked before the first is."""
    from sam_algos.recipes import check_names, load_recipe

    found = []
    for number in range(args.seeds):
        for method in methods:
            recipe = load_recipe(args.recipe, [*args.overrides, f"method={method}"])
            seed = recipe.seed + number
            if number:
                recipe = load_recipe(args.recipe, [*args.overrides, f"method={method}", f"seed={seed}"])
            check_names(recipe)
            leaf = method if args.seeds == 1 else f"{method}-seed{seed}"
            found.append((method, _inside(recipe, leaf)))
    return found


def _inside(recipe: Recipe, leaf: str) -> Recipe:
    """`recipe` with folders of its own, below those of the comparison."""
    folder, saves = f"{recipe.run_folder}/{leaf}", recipe.save_folder
    if saves is not None and saves.startswith(recipe.run_folder):
        saves = folder + saves.removeprefix(recipe.run_folder)
    elif saves is not None:
        saves = f"{saves}/{leaf}"
    return replace(recipe, run_folder=folder, save_folder=saves)


def _trained(recipes: list[tuple[str, Recipe]], name: str) -> list[Result]:
    from sam_algos.recipes import find
    from sam_algos.recipes.comparison import Result

    results: list[Result] = []
    run_name = recipes[0][1].run_name
    for number, (method, recipe) in enumerate(recipes, 1):
        if rank() == 0:
            print(f"[{number}/{len(recipes)}] {method}, seed {recipe.seed}", file=sys.stderr, flush=True)
        done = train(replace(recipe, run_name=run_name), f"{find(name).label}-compare")
        run_name = done.trainer.state.run_name  # the first chooses the name of all
        results.append(Result(method, recipe.seed, Path(done.folder), done.summary()))
    return results


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return int(text)
