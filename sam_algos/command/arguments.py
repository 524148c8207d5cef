"""Arguments that several commands take."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

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


def refuse_options(
    parser: argparse.ArgumentParser, args: argparse.Namespace, strange: Sequence[str], words: Sequence[str]
) -> NoReturn:
    """Refuse options that a command does not have, with the override that says the same.

    Args:
        parser (argparse.ArgumentParser): Of the command.
        args (argparse.Namespace): What it understood.
        strange (Sequence[str]): What it did not.
        words (Sequence[str]): All of its arguments.

    Raises:
        RecipeError: About the first.
        SystemExit: If there is no option among them.
    """
    from sam_algos.recipes.errors import RecipeError

    option = next((word for word in strange if word.startswith("-")), None)
    if option is None or not hasattr(args, "overrides"):
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    name, equals, value = option.partition("=")
    others = list(words[: words.index(option)]) + list(words[words.index(option) + 1 :])
    following = words[words.index(option) + 1 :][:1]
    if not equals and following and not following[0].startswith("-") and "=" not in following[0]:
        value = others.pop(words.index(option))
    near = difflib.get_close_matches(name, parser._option_string_actions, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]!r}?" if near else "keys of a recipe are written key=value, e.g. max_duration=20ep"
    if meant := _meant(others, name.lstrip("-").replace("-", "_"), value or "VALUE"):
        hint = f"write {meant[0]}"
    raise RecipeError(name, f"no such option; {hint}")


def _meant(words: Sequence[str], key: str, value: str) -> list[str]:
    """What an option would be as an override of the recipe that is among the words."""
    from sam_algos.recipes.reading.load import meant_by

    words = [word for word in words if not word.startswith("-")]
    recipes, overrides = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    return meant_by(recipes[0], overrides, key, value) if recipes else []


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the choice of how the result is printed."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
