"""The folder of a run: made when all else is in order, and taken away where nothing came of it."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from composer.utils import dist

from sam_algos.recipes.errors import RecipeError
from sam_algos.recipes.schema import Recipe


def make_folder(recipe: Recipe, name: str) -> tuple[Recipe, tuple[Path, ...]]:
    """Make the folder of a run.

    A folder that exists is another run's, unless this run resumes that one; a name that nobody chose gives way to it.

    Args:
        recipe (Recipe): A resolved recipe.
        name (str): What a run without a ``run_name`` is called, before the time.

    Returns:
        tuple: The recipe with a run name that is the same on every process, and the folders that were made, innermost
        first.

    Raises:
        RecipeError: If the folder is another run's, or cannot be made; then nothing was made.
    """
    answer: list[Any] = ["", (), None]
    if dist.get_global_rank() == 0:
        try:
            answer[:2] = _claim(recipe, name)
        except RecipeError as error:
            answer[2] = (error.where, error.problem)
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(answer)
    run_name, made, refusal = answer
    if refusal is not None:
        raise RecipeError(*refusal)
    return replace(recipe, run_name=run_name), made


def _claim(recipe: Recipe, name: str) -> tuple[str, tuple[Path, ...]]:
    """A run name and the folders made for it: making one is how two runs of the same second tell who is first."""
    own = recipe.run_name or f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    number, run_name = 1, own
    while True:
        folder = Path(recipe.run_folder.format(run_name=run_name))
        missing: tuple[Path, ...] = ()
        try:
            missing = tuple(path for path in (folder, *folder.parents) if not path.exists())
            folder.mkdir(parents=True, exist_ok=recipe.autoresume)
        except FileExistsError:
            if recipe.run_name is None and "{run_name" in recipe.run_folder:
                number += 1
                run_name = f"{own}-{number}"
                continue
            where = "run_name" if "{run_name" in recipe.run_folder else "run_folder"
            problem = f"{folder} exists; take another name, or go on with autoresume=true"
            raise RecipeError(where, problem) from None
        except OSError as error:
            _remove_empty(missing)
            raise RecipeError("run_folder", f"cannot make {folder}: {error.strerror or error}") from error
        return run_name, missing


def remove_folders(made: tuple[Path, ...]) -> None:
    """Remove a run's folder with all that is in it, and its parents unless another run uses them.

    Args:
        made (tuple[Path, ...]): From `make_folder`.
    """
    if made and made[0].exists():
        shutil.rmtree(made[0])
    _remove_empty(made[1:])


def _remove_empty(folders: tuple[Path, ...]) -> None:
    """Remove folders, innermost first, as far as nobody has put anything into them."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
