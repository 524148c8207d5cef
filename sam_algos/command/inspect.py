"""``sam-algos validate``, ``show``, ``list``, ``explain`` and ``schema``: what can be known without training."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sam_algos.command import Command, add_recipe, recipe_of

if TYPE_CHECKING:
    from sam_algos.recipes import Recipe
    from sam_algos.recipes.naming.arguments import Form

_AXES = ("policy", "perturbation", "descent", "samples", "schedule")

_OTHERS = ("dataset", "model", "optimizer", "scheduler", "callback", "logger")

_VALIDATE = """\
examples:
  sam-algos validate mine.yaml max_duration=20ep
  sam-algos validate --json mine.yaml        {"valid": false, "where": "...", "problem": "..."}

Keys, names, arguments and ranges are checked, and that files and folders exist. What depends on their content, the
device and the libraries is checked when training begins, before its first step.
"""

_SHOW = """\
examples:
  sam-algos show digits/sam
  sam-algos show cifar10/resnet18 variables.data_path=/data
"""

_LIST = "examples:\n  sam-algos list\n  sam-algos list methods\n  sam-algos list recipes --json\n"

_EXPLAIN = "examples:\n  sam-algos explain aesam\n  sam-algos explain gradient_norm\n  sam-algos explain digits\n"

_SCHEMA = """\
examples:
  sam-algos schema > recipe.schema.json

Where `# yaml-language-server: $schema=recipe.schema.json` is the first line of a recipe, editors complete its keys,
names and arguments, and mark what is wrong. Print the schema again after an upgrade: it has the names of what is
installed.
"""


def _validate(args: argparse.Namespace) -> int:
    from sam_algos.recipes import RecipeError

    try:
        recipe_of(args)
        _check_compared(args)
    except RecipeError as error:
        if not args.json:
            raise
        print(json.dumps({"valid": False, "where": error.where, "problem": error.problem}))
        return 2
    print(json.dumps({"valid": True}) if args.json else f"valid: {args.recipe}")
    return 0


def _check_compared(args: argparse.Namespace) -> None:
    """Check the recipe with each method that its ``compare:`` names, as ``compare`` will."""
    from sam_algos.recipes import check_names, comparison_of, find, load_recipe

    if find(args.recipe).method is None and not any(o.startswith("method=") for o in args.overrides):
        for method in comparison_of(args.recipe, args.overrides).methods:
            check_names(load_recipe(args.recipe, [*args.overrides, f"method={method}"]))


def _show(args: argparse.Namespace) -> int:
    """Print the recipe at once, then its size, for which the model is built and the data opened."""
    from sam_algos.recipes import dump_recipe

    recipe = recipe_of(args)
    if not args.json:
        print(dump_recipe(recipe), flush=True)
    size = _size(recipe)
    if args.json:
        print(json.dumps({"recipe": vars(recipe), **size}))
        return 0
    print("# parameters: {parameters:,}".format_map(size))
    print("# samples: {train_samples:,} to train on, {eval_samples:,} to evaluate on".format_map(size))
    total = "" if size["steps"] is None else f", {size['steps']:,} in all"
    print(f"# steps: {size['steps_per_epoch']:,} an epoch{total}")
    return 0


def _size(recipe: Recipe) -> dict[str, Any]:
    """The size of a training; ``steps`` is None where the duration is not in epochs, batches or samples."""
    from composer import Time
    from composer.core import TimeUnit

    from sam_algos.recipes.data.datasets import load_data
    from sam_algos.recipes.data.models import build_model

    train, test = load_data(recipe)
    model = build_model(recipe.model, train)
    per_epoch = len(train) // recipe.global_train_batch_size
    duration = Time.from_input(recipe.max_duration, TimeUnit.EPOCH)
    steps = {
        TimeUnit.EPOCH: duration.value * per_epoch,
        TimeUnit.BATCH: duration.value,
        TimeUnit.SAMPLE: -(-duration.value // recipe.global_train_batch_size),
    }
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "train_samples": len(train),
        "eval_samples": len(test),
        "steps_per_epoch": per_epoch,
        "steps": steps.get(duration.unit),
    }


def _list(args: argparse.Namespace) -> int:
    groups = _groups(with_recipes=args.what in (None, "recipes"))
    if args.what is None:
        names = {group: sorted(entries) for group, entries in groups.items()}
        print(json.dumps(names) if args.json else "\n".join(f"{group}: {', '.join(n)}" for group, n in names.items()))
        return 0
    chosen = {name: doc for group in groups if group.startswith(args.what) for name, doc in groups[group].items()}
    if args.json:
        print(json.dumps(chosen))
        return 0
    width = max(map(len, chosen))
    print("\n".join(f"{name:<{width}}  {doc}".rstrip() for name, doc in sorted(chosen.items())))
    return 0


def _groups(*, with_recipes: bool) -> dict[str, dict[str, str]]:
    """All names in groups, each with its first line. Only recipes need a YAML parser."""
    from sam_algos import recipes
    from sam_algos.recipes.naming.catalogue import catalogue

    names, found = catalogue().groups, recipes.shipped() if with_recipes else {}
    groups = {
        "methods": names["method"],
        **{f"parts ({axis})": names[axis] for axis in _AXES},
        "algorithms": {name: form for name, form in names["algorithm"].items() if name not in names["method"]},
        **{f"{group}s": names[group] for group in _OTHERS},
    }
    return {
        "recipes": {name: f"method={', '.join(recipes.methods_of(path))}" for name, path in found.items()},
        **{group: {name: _first_line(form) for name, form in forms.items()} for group, forms in groups.items()},
    }


def _explain(args: argparse.Namespace) -> int:
    """Print a card, or a recipe: a recipe and a data set may have the same name, as ``digits`` has."""
    from sam_algos.recipes import RecipeError, find, shipped
    from sam_algos.recipes.errors import unknown
    from sam_algos.recipes.naming.catalogue import catalogue

    first = ("method", *_AXES, "algorithm")
    if (entry := _entry(args.name, first)) is not None:
        return _print_card(args, *entry)
    with suppress(RecipeError):
        found = find(args.name)
        text = found.path.read_text(encoding="utf-8", errors="replace")  # as it stands, which needs no YAML parser
        chosen = "" if found.method is None else f", here with method={found.method}"
        card = {"name": args.name, "kind": "recipe", "arguments": {}, "doc": text}
        head = f"{args.name} is a recipe{chosen}. Resolved: sam-algos show {args.name}\n\n"
        print(f"{json.dumps(card)}\n" if args.json else head + text, end="")
        return 0
    if (entry := _entry(args.name, _OTHERS)) is not None:
        return _print_card(args, *entry)
    names = [name for group in (*first, *_OTHERS) for name in catalogue().groups[group]]
    raise unknown("explain", "name", args.name, {*names, *shipped()})


def _entry(name: str, groups: Sequence[str]) -> tuple[str, Form] | None:
    """The first group that has a name, and its form."""
    from sam_algos.recipes.errors import RecipeError
    from sam_algos.recipes.naming.catalogue import catalogue
    from sam_algos.recipes.naming.names import lookup

    for group in groups:
        with suppress(RecipeError):
            return group, lookup("explain", group, name, catalogue().groups[group])
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


def _schema(args: argparse.Namespace) -> int:
    from sam_algos.recipes.reading.editors import json_schema

    print(json.dumps(json_schema(), indent=None if args.json else 1, ensure_ascii=False))
    return 0


def plain(doc: str) -> str:
    """A docstring without its markup, for a terminal.

    Example:
        >>> plain("**Idea.** Climb, then descend (`Foret et al., 2021 <https://arxiv.org/abs/2010.01412>`_) at ``w``.")
        'Idea. Climb, then descend (Foret et al., 2021, https://arxiv.org/abs/2010.01412) at w.'
    """
    doc = re.sub(r"`([^`<]+?)\s+<([^>]+)>`_+", r"\1, \2", doc)
    doc = re.sub(r":attr:`\.?([^`]+)`", r"\1", doc)
    return re.sub(r"``|`|\*\*", "", doc)


def _first_line(form: Form) -> str:
    return plain(re.split(r"(?<=[.:])\s|\n", form.doc, maxsplit=1)[0])


def _yaml(words: str | None) -> str | None:
    """Python's None as YAML writes it."""
    return words and re.sub(r"\bNone\b", "null", words)


def _add_what(parser: argparse.ArgumentParser) -> None:
    groups = ("recipes", "methods", "parts", "algorithms", *(f"{group}s" for group in _OTHERS))
    parser.add_argument("what", nargs="?", choices=groups, help="print only these names, one a line; default: all")


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a method, a part, a recipe, or any other name that `list` prints")


COMMANDS = {
    "validate": Command(_VALIDATE, add_recipe, _validate),
    "show": Command(_SHOW, add_recipe, _show),
    "list": Command(_LIST, _add_what, _list),
    "explain": Command(_EXPLAIN, _add_name, _explain),
    "schema": Command(_SCHEMA, lambda parser: None, _schema),
}
