"""Arguments that several commands take."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sam_algos.recipes import Recipe


def add_recipe(parser: argparse.ArgumentParser, *, what: str = "what to change in it") -> None:
    """Add the recipe and its overrides."""
    parser.add_argument("recipe", help="a YAML file, or the name of a recipe that comes with the package")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=what)


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe of `add_recipe`, with all that can be checked without PyTorch.

    Raises:
        RecipeError: For whatever is wrong with it.
    """
    from sam_algos.recipes import check_names, load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    check_names(recipe)
    return recipe


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the choice of how the result is printed."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
