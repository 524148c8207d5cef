"""All names that a recipe can use, with what each takes, as a table that is read without importing PyTorch or Composer.

The table is made from the libraries themselves (``python -m sam_algos.recipes.libraries``), and a test keeps it so.
Where other versions of them are installed, or methods were added, it is made anew in memory, which takes seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sam_algos.recipes.forms import Argument, Form

FILE = Path(__file__).with_name("catalogue.json")
"""The table that comes with the package."""

_METHODS = Path(__file__).parents[1] / "methods"


@dataclass(frozen=True)
class Catalogue:
    """Names and their forms.

    Args:
        groups (Mapping[str, Mapping[str, Form]]): By what they are (``method``, ``algorithm``, ``optimizer``, ...; an
            axis of parts by its own name) and by name. Methods are among the algorithms, too.
    """

    groups: Mapping[str, Mapping[str, Form]]


@cache
def catalogue() -> Catalogue:
    """The names that can be used with what is installed.

    Returns:
        Catalogue: From the table that comes with the package where that is made for what is installed.
    """
    table = json.loads(FILE.read_text(encoding="utf-8"))
    if table["made_for"] != installed() and _version("mosaicml") is not None:
        from sam_algos.recipes.libraries import build

        table = build()
    groups = {group: {name: _form(entry) for name, entry in forms.items()} for group, forms in table["names"].items()}
    return Catalogue({**groups, "algorithm": {**groups["algorithm"], **groups["method"]}})


def _form(entry: Mapping[str, Any]) -> Form:
    arguments = {name: Argument(tuple(kinds), default) for name, (*kinds, default) in entry["arguments"].items()}
    return Form(arguments, entry["takes_others"], entry["doc"], entry.get("samples"))


def installed() -> dict[str, str | None]:
    """What the table depends on, and what can change without it.

    Returns:
        dict[str, str | None]: Versions, None of what is not installed, and a digest of the methods' source.
    """
    source = "".join(path.read_text(encoding="utf-8") for path in sorted(_METHODS.glob("*.py")))
    versions = {name: _version(name) for name in ("mosaicml", "torch", "torchvision")}
    return {**versions, "methods": hashlib.sha256(source.encode()).hexdigest()[:16]}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None
