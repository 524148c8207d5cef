"""Recipes: a training run written down as YAML.

`load_recipe` finds and reads one and checks it against `Recipe`, which lists the keys; `check_names` checks the names
in it and their arguments; ``prepare`` in ``sam_algos.recipes.run`` builds what it names. Importing this package
imports neither torch nor Composer, and what reads YAML only when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sam_algos.recipes.errors import RecipeError
from sam_algos.recipes.reading.find import find, shipped
from sam_algos.recipes.schema import Recipe

if TYPE_CHECKING:
    from sam_algos.recipes.reading.check import check_names
    from sam_algos.recipes.reading.load import comparison_of, dump_recipe, load_recipe, methods_of

__all__ = [
    "Recipe",
    "RecipeError",
    "check_names",
    "comparison_of",
    "dump_recipe",
    "find",
    "load_recipe",
    "methods_of",
    "shipped",
]


def __getattr__(name: str) -> Any:
    """A function that needs YAML."""
    if name in __all__:
        module = "check" if name == "check_names" else "load"
        return getattr(import_module(f"sam_algos.recipes.reading.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
