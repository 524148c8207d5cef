"""``sam-algos schema``."""

from __future__ import annotations

import argparse
import json

EPILOG = """\
examples:
  sam-algos schema > recipe.schema.json

In the first line of a recipe, `# yaml-language-server: $schema=recipe.schema.json` has editors complete keys, names and
arguments, and mark what is wrong. The schema is of what is installed: print it again after an upgrade.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no argument: there is one schema."""


def run(args: argparse.Namespace) -> int:
    """Print the schema."""
    from sam_algos.recipes.reading.editors import json_schema

    print(json.dumps(json_schema(), indent=1, ensure_ascii=False))
    return 0
