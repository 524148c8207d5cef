"""Where a recipe is: a file of the user's, or one that comes with the package."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sam_algos
from sam_algos.recipes.errors import RecipeError

_PACKAGE = Path(sam_algos.__file__ or "").parent


@dataclass(frozen=True)
class Found:
    """A recipe that was found.

    Args:
        path (Path): Its file.
        method (str | None): The method that its name ends in: ``digits/aesam`` is ``digits`` with ``aesam``.
        label (str): What a run of it is called.
    """

    path: Path
    method: str | None
    label: str


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name.

    Returns:
        dict[str, Path]: ``digits``, ``cifar10/resnet18``, ...
    """
    root = _root()
    paths = sorted(path for path in root.rglob("*.yaml") if path.stem != "base")
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in paths}


def find(name: str | Path) -> Found:
    """Find a recipe by its path or its name.

    Args:
        name (str | Path): A file, with or without ``.yaml``, or the name of a shipped recipe; the user's file comes
            first. ``RECIPE/METHOD``, where there is no such file, is the recipe with that method.

    Returns:
        Found: The file.

    Raises:
        RecipeError: If there is none, with the nearest name.

    Example:
        >>> find("digits/aesam").method
        'aesam'
    """
    given = Path(name)
    for root in (Path(), _root()):
        for candidate, method in _candidates(root / given):
            if _is_file(candidate):
                return Found(candidate, method, _label(given))
    names = shipped()
    near = difflib.get_close_matches(str(name).removesuffix(".yaml"), names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"those that come with the package: {', '.join(names)}"
    raise RecipeError(str(name) or "''", f"no such recipe; {hint}")


def _root() -> Path:
    """The folder of the shipped recipes: in the package where it is installed, beside it in a checkout."""
    inside = _PACKAGE / "yamls"
    return inside if inside.is_dir() else _PACKAGE.parent / "yamls"


def _candidates(path: Path) -> Iterator[tuple[Path, str | None]]:
    yield path, None
    stem = path.parent / path.name.removesuffix(".yaml")
    yield path.parent / f"{stem.name}.yaml", None
    yield path.parent.parent / f"{path.parent.name}.yaml", stem.name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _label(given: Path) -> str:
    words = [part.removesuffix(".yaml") for part in given.parts if part not in ("..", given.anchor, "yamls")]
    return "-".join(words[-2:])
