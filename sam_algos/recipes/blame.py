"""Which key of a recipe an error of Composer's is about."""

from __future__ import annotations

import traceback
from pathlib import Path

from sam_algos.recipes.names import spelling
from sam_algos.recipes.schema import Recipe

_LOADERS = {("utils", "checkpoint.py"), ("checkpoint", "load.py")}  # that read checkpoints


def culprit(error: Exception, recipe: Recipe) -> str:
    """The key that an error of Composer's is about, by the file that raised it.

    Args:
        error (Exception): With its traceback.
        recipe (Recipe): What Composer was given.

    Returns:
        str: The key of an algorithm, ``load_path`` or ``autoresume``; else ``recipe``.
    """
    files = [Path(frame.filename).parts for frame in traceback.extract_tb(error.__traceback__)]
    for parts in reversed(files):
        for name in recipe.algorithms:
            if parts[-3:-2] == ("algorithms",) and spelling(parts[-2]) == spelling(name):
                return f"algorithms.{name}"
        if parts[-2:] in _LOADERS:
            return "autoresume" if recipe.load_path is None else "load_path"
    return "recipe"
