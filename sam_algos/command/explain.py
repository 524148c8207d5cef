"""``sam-algos explain``."""

from __future__ import annotations

import argparse
import json
import re

from sam_algos.command.arguments import add_json
from sam_algos.command.cards import plain

_GROUPS = ("method", "policy", "perturbation", "descent", "samples", "schedule", "algorithm")

EPILOG = "examples:\n  sam-algos explain aesam\n  sam-algos explain gradient_norm\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument("name", metavar="METHOD", help="a method, one of the parts, or one of Composer's algorithms")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the card."""
    from sam_algos.recipes.catalogue import catalogue
    from sam_algos.recipes.names import lookup

    groups = catalogue().groups
    table = {name: (group, form) for group in reversed(_GROUPS) for name, form in groups[group].items()}
    group, form = lookup("explain", "method", args.name, table)
    arguments = {name: {"allowed": _yaml(a.allowed), "default": _yaml(a.default)} for name, a in form.arguments.items()}
    if args.json:
        print(json.dumps({"name": args.name, "kind": group, "arguments": arguments, "doc": form.doc}))
        return 0
    print(plain(form.doc))
    if arguments:
        width = max(map(len, arguments))
        print("\nIn a recipe:")
        for name, argument in arguments.items():
            default = "required" if argument["default"] is None else f"default {argument['default']}"
            print(f"    {name:<{width}}  {argument['allowed']}; {default}")
    return 0


def _yaml(words: str | None) -> str | None:
    """Python's None as YAML writes it."""
    return words and re.sub(r"\bNone\b", "null", words)
