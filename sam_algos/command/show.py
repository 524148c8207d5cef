"""``sam-algos show``."""

from __future__ import annotations

import argparse
import json

from sam_algos.command.arguments import add_json, add_recipe, recipe_of

EPILOG = """\
examples:
  sam-algos show digits/sam
  sam-algos show cifar10/resnet18 variables.data_path=/data
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    add_recipe(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the recipe at once, then what takes the model and the data to know."""
    from sam_algos.recipes import dump_recipe

    recipe = recipe_of(args)
    if not args.json:
        print(dump_recipe(recipe), flush=True)
    from sam_algos.recipes.size import size_of

    size = size_of(recipe)
    if args.json:
        print(json.dumps({"recipe": vars(recipe), **vars(size)}))
        return 0
    print(f"# parameters: {size.parameters:,}")
    print(f"# samples: {size.train_samples:,} to train on, {size.eval_samples:,} to evaluate on")
    total = "" if size.steps is None else f", {size.steps:,} in all"
    print(f"# steps: {size.steps_per_epoch:,} an epoch{total}")
    return 0
