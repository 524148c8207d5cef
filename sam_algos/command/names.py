"""``sam-algos list``."""

from __future__ import annotations

import argparse
import json
import re

from sam_algos.command.arguments import add_json
from sam_algos.command.cards import plain

_AXES = ("policy", "perturbation", "descent", "samples", "schedule")

_GROUPS = (
    "recipes",
    "methods",
    "parts",
    "algorithms",
    "datasets",
    "models",
    "optimizers",
    "schedulers",
    "callbacks",
    "loggers",
)

EPILOG = "examples:\n  sam-algos list\n  sam-algos list methods\n  sam-algos list recipes --json\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        "what", nargs="?", choices=_GROUPS, help="which names, one a line; default: all, by what they are"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the names."""
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
    """All names by what they are, each with its first line. Recipes take what reads YAML."""
    from sam_algos import recipes
    from sam_algos.recipes.naming.catalogue import catalogue

    names, found = catalogue().groups, recipes.shipped() if with_recipes else {}
    groups = {
        "recipes": {name: f"method={', '.join(recipes.methods_of(path))}" for name, path in found.items()},
        "methods": names["method"],
        **{f"parts ({axis})": names[axis] for axis in _AXES},
        "algorithms": {name: form for name, form in names["algorithm"].items() if name not in names["method"]},
        **{f"{group}s": names[group] for group in ("dataset", "model", "optimizer", "scheduler", "callback", "logger")},
    }
    return {
        group: {name: entry if isinstance(entry, str) else _first_line(entry.doc) for name, entry in entries.items()}
        for group, entries in groups.items()
    }


def _first_line(doc: str) -> str:
    return plain(re.split(r"(?<=[.:])\s|\n", doc, maxsplit=1)[0])
