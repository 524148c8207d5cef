"""``sam-algos explain``."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from sam_algos.command.arguments import add_json
from sam_algos.command.cards import plain

if TYPE_CHECKING:
    from sam_algos.recipes.find import Found
    from sam_algos.recipes.forms import Form

_FIRST = ("method", "policy", "perturbation", "descent", "samples", "schedule", "algorithm")
"""What a name is taken for; then for a recipe, as ``digits`` is one, and a data set too."""

_THEN = ("dataset", "model", "optimizer", "scheduler", "callback", "logger")

EPILOG = "examples:\n  sam-algos explain aesam\n  sam-algos explain gradient_norm\n  sam-algos explain digits\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("name", metavar="NAME", help="a method, one of the parts, a recipe, or what else `list` names")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the card."""
    if (entry := _entry(args.name, _FIRST)) is not None:
        return _print_card(args, *entry)
    if (found := _recipe(args.name)) is not None:
        return _print_recipe(args, found)
    if (entry := _entry(args.name, _THEN)) is not None:
        return _print_card(args, *entry)
    from sam_algos.recipes import shipped
    from sam_algos.recipes.catalogue import catalogue
    from sam_algos.recipes.errors import unknown

    names = [name for group in (*_FIRST, *_THEN) for name in catalogue().groups[group]]
    raise unknown("explain", "name", args.name, {*names, *shipped()})


def _entry(name: str, groups: Sequence[str]) -> tuple[str, Form] | None:
    """What the first group that has a name has under it."""
    from sam_algos.recipes.catalogue import catalogue
    from sam_algos.recipes.errors import RecipeError
    from sam_algos.recipes.names import lookup

    for group in groups:
        with suppress(RecipeError):
            return group, lookup("explain", group, name, catalogue().groups[group])
    return None


def _recipe(name: str) -> Found | None:
    from sam_algos.recipes import RecipeError, find

    try:
        return find(name)
    except RecipeError:
        return None


def _print_card(args: argparse.Namespace, group: str, form: Form) -> int:
    arguments = {name: {"allowed": _yaml(a.allowed), "default": _yaml(a.default)} for name, a in form.arguments.items()}
    if args.json:
        print(json.dumps({"name": args.name, "kind": group, "arguments": arguments, "doc": form.doc}))
        return 0
    print(plain(form.doc) or f"{args.name}: a {group}.")
    if arguments:
        width = max(map(len, arguments))
        print("\nIn a recipe:")
        for name, argument in arguments.items():
            default = "required" if argument["default"] is None else f"default {argument['default']}"
            print(f"    {name:<{width}}  {argument['allowed']}; {default}")
    return 0


def _print_recipe(args: argparse.Namespace, found: Found) -> int:
    """The file as it stands, which needs nothing that reads YAML."""
    text = found.path.read_text(encoding="utf-8", errors="replace")
    if args.json:
        print(json.dumps({"name": args.name, "kind": "recipe", "arguments": {}, "doc": text}))
        return 0
    chosen = "" if found.method is None else f", here with method={found.method}"
    print(f"{args.name} is a recipe{chosen}. Resolved: sam-algos show {args.name}\n\n{text}", end="")
    return 0


def _yaml(words: str | None) -> str | None:
    """Python's None as YAML writes it."""
    return words and re.sub(r"\bNone\b", "null", words)
