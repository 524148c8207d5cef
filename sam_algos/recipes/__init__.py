"""Recipes: a training run written down as YAML.

`load_recipe` reads one and checks it against `Recipe`, which lists the keys; ``prepare`` in
``sam_algos.recipes.run`` builds what it names. Importing this package imports neither torch nor Composer.
"""

from sam_algos.recipes.errors import RecipeError
from sam_algos.recipes.load import dump_recipe, load_recipe
from sam_algos.recipes.schema import Recipe

__all__ = ["Recipe", "RecipeError", "dump_recipe", "load_recipe"]
