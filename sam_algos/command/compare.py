"""``sam-algos compare``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sam_algos.command.arguments import add_json, add_recipe
from sam_algos.command.ending import rank
from sam_algos.command.train import train

if TYPE_CHECKING:
    from sam_algos.recipes import Recipe
    from sam_algos.recipes.comparison import Result

EPILOG = """\
examples:
  sam-algos compare digits                                        plain SGD and AE-SAM, about half a minute
  sam-algos compare digits --methods sgd,sam,aesam,momentumsam_recalibrated --seeds 5
  sam-algos compare mine.yaml --methods adamw,aesam run_name=first autoresume=true

A method is a row of the recipe's table, or any method with its defaults; the optimizer's name is none. Each is
trained once a seed, one after the other; what is done stays, and with a run_name and autoresume=true an
interrupted comparison goes on.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_recipe(parser, what="what to change in it, for every method")
    parser.add_argument("--methods", help="separated by commas; default: the plain optimizer, and aesam")
    parser.add_argument("--seeds", type=_count, default=1, metavar="N", help="trainings of each method; default: 1")
    add_json(parser)


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
    """What is compared."""
    from sam_algos.recipes import RecipeError, find, load_recipe

    given = find(args.recipe).method or next((o for o in args.overrides if o.startswith("method=")), None)
    if given is not None:
        raise RecipeError("--methods", f"says what is compared: write --methods sgd,{given.removeprefix('method=')}")
    if args.methods is None:
        return [load_recipe(args.recipe, [*args.overrides, "method=null"]).optimizer["name"], "aesam"]
    methods = dict.fromkeys(name.strip() for name in args.methods.split(",") if name.strip())
    if not methods:
        raise RecipeError("--methods", "names no method")
    return list(methods)


def _recipes(args: argparse.Namespace, methods: list[str]) -> list[tuple[str, Recipe]]:
    """Every recipe that will be trained, all of them checked before the first is."""
    from sam_algos.recipes import RecipeError, check_names, load_recipe

    found = []
    for number in range(args.seeds):
        for method in methods:
            recipe = load_recipe(args.recipe, [*args.overrides, f"method={method}"])
            seed = recipe.seed + number
            if number:
                recipe = load_recipe(args.recipe, [*args.overrides, f"method={method}", f"seed={seed}"])
            check_names(recipe)
            if recipe.bootstrap:
                raise RecipeError("bootstrap", f"{method} trains several times; compare trains each method once")
            found.append((method, _inside(recipe, method if args.seeds == 1 else f"{method}-seed{seed}")))
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
