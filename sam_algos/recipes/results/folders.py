"""The folder of a run: claimed by making it, and removed if nothing came of the run."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from sam_algos.recipes.errors import RecipeError


def claim_folder(pattern: str, run_name: str | None, name: str, *, resume: bool = False) -> tuple[str, list[Path]]:
    """Make the folder of a run, which also settles its name: of two runs in one second only one can make it.

    A run without a `run_name` is called `name` and the time, with a suffix if the folder exists. The `pattern` of the
    folder has ``{run_name}`` in it. Returned are the run name and the folders that were made, innermost first.

    Raises:
        RecipeError: If the folder belongs to another run, or cannot be made; then nothing was made.
    """
    automatic = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    number, chosen = 1, run_name or automatic
    while True:
        folder = Path(pattern.format(run_name=chosen))
        missing: list[Path] = []
        try:
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=resume)
            return chosen, missing
        except FileExistsError:
            if run_name is not None or "{run_name" not in pattern:
                where = "run_name" if "{run_name" in pattern else "run_folder"
                problem = f"{folder} exists; take another name, or go on with autoresume=true"
                raise RecipeError(where, problem) from None
            number += 1
            chosen = f"{automatic}-{number}"
        except OSError as error:
            remove_empty(missing)
            raise RecipeError("run_folder", f"cannot make {folder}: {error.strerror or error}") from error


def remove_folders(made: Sequence[Path]) -> None:
    """Remove the folders that `claim_folder` made: a run's with everything in it, its parents if they are empty."""
    if made and made[0].exists():
        shutil.rmtree(made[0])
    remove_empty(made[1:])


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, innermost first, as long as they are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
