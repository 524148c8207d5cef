"""The command ``sam-algos``: `main`, and what its commands share. Only training imports PyTorch and Composer."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from sam_algos.command.ending import exit_status

if TYPE_CHECKING:
    from sam_algos.recipes import Recipe

COMMANDS = {
    "train": "train a network from a recipe",
    "compare": "train with several methods, and draw what they did",
    "validate": "check a recipe without training",
    "show": "show a resolved recipe, and how large its training is",
    "list": "list the recipes, and all that they can name",
    "explain": "explain a method or one of its parts",
    "schema": "print the JSON Schema of recipes, for editors",
}
"""The commands, and what each does."""

_MODULES = {"train": "train", "compare": "compare"}  # the others train nothing, and are in `inspect`

_EXAMPLES = """\
examples:
  sam-algos train digits                                       AE-SAM on handwritten digits with wrong labels
  sam-algos train digits method=sam algorithms.sam.rho=0.1
  sam-algos compare mnist1d                                    SGD, Momentum-SAM, SAM and AE-SAM side by side
  sam-algos train mine.yaml max_duration=20ep
  sam-algos list methods
  composer -n 2 -m sam_algos.train cifar10/wrn28_10/sam variables.data_path=/data      two processes

`sam-algos COMMAND --help` says more.
"""


@dataclass(frozen=True)
class Command:
    """A command: examples for ``--help``, its arguments, and a function that runs it and returns the exit status."""

    epilog: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv (Sequence[str], optional): Arguments. Default: those of the process.

    Returns:
        int: 0 when done, 1 when training failed, 2 when a recipe or an argument is wrong, 130 when interrupted and 143
        when terminated.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] not in COMMANDS:
        return _front(argv)
    return exit_status(lambda: _run(*argv), argv, traceback="--traceback" in argv[1:])


def _run(name: str, *words: str) -> int:
    command: Command = import_module(f"sam_algos.command.{_MODULES.get(name, 'inspect')}").COMMANDS[name]
    # No formatter that folds lines: descriptions and examples are laid out by hand.
    parser = argparse.ArgumentParser(
        prog=f"sam-algos {name}", description=COMMANDS[name].capitalize() + ".", epilog=command.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    command.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--traceback", action="store_true", help="show where in the code something fails")
    args, strange = parser.parse_known_intermixed_args(words)
    if strange:
        _refuse_options(parser, args, strange, words)
    return command.run(args)


def add_recipe(parser: argparse.ArgumentParser, *, what: str = "what to change in it") -> None:
    """Add the recipe and its overrides."""
    parser.add_argument("recipe", help="a YAML file, or the name of a recipe that comes with the package")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=what)


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe of `add_recipe`, with everything checked that can be checked without PyTorch.

    Raises:
        RecipeError: For whatever is wrong with it.
    """
    from sam_algos.recipes import check_names, load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    check_names(recipe)
    return recipe


def _refuse_options(
    parser: argparse.ArgumentParser, args: argparse.Namespace, strange: Sequence[str], words: Sequence[str]
) -> NoReturn:
    """Refuse the first of the `strange` options among all `words`, and name the override that says the same."""
    from sam_algos.recipes.errors import RecipeError

    option = next((word for word in strange if word.startswith("-")), None)
    if option is None or not hasattr(args, "overrides"):
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    name, equals, value = option.partition("=")
    others, place = list(words), words.index(option)
    del others[place]
    following = others[place : place + 1]
    if not equals and following and not following[0].startswith("-") and "=" not in following[0]:
        value = others.pop(place)
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


def _front(argv: list[str]) -> int:
    """Answer without a command, or with one that does not exist."""
    parser = argparse.ArgumentParser(
        prog="sam-algos",
        description="Sharpness-aware training from recipes.",
        usage="sam-algos COMMAND ...",
        epilog="commands:\n" + "".join(f"  {name:<10} {what}\n" for name, what in COMMANDS.items()) + "\n" + _EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the versions, and exit")
    args, rest = parser.parse_known_args(argv)
    if args.version:
        print(_versions())
        return 0
    if not rest:
        parser.print_help()
        return 0
    near = difflib.get_close_matches(rest[0], COMMANDS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"commands: {', '.join(COMMANDS)}"
    print(f"error: {rest[0]}: no such command; {hint}", file=sys.stderr)
    return 2


def _versions() -> str:
    from importlib import metadata

    from sam_algos import __version__

    found = {"sam-algos": __version__}
    for library in ("torch", "mosaicml"):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            found[library] = "not installed"
    return ", ".join(f"{name} {version}" for name, version in found.items())
