"""``sam-algos validate``."""

from __future__ import annotations

import argparse
import json

from sam_algos.command.arguments import add_json, add_recipe, recipe_of

EPILOG = """\
examples:
  sam-algos validate mine.yaml max_duration=20ep
  sam-algos validate --json mine.yaml        {"valid": false, "where": "...", "problem": "..."}

Keys, names, arguments and ranges are checked, and that files and folders are there. What only their content, the
device and the libraries can tell is found when training begins, before its first step.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_recipe(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Check the recipe."""
    from sam_algos.recipes import RecipeError

    try:
        recipe_of(args)
    except RecipeError as error:
        if not args.json:
            raise
        print(json.dumps({"valid": False, "where": error.where, "problem": error.problem}))
        return 2
    print(json.dumps({"valid": True}) if args.json else f"valid: {args.recipe}")
    return 0
