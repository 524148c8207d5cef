"""All names that a recipe can use, with what each takes, as a table that is read without importing PyTorch or Composer.

The table is made from the libraries themselves (``python -m sam_algos.recipes.catalogue``), and a test keeps it so.
Where other versions of them are installed, or methods were added, it is made anew in memory, which takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

from sam_algos.recipes.forms import Argument, Form, describe

_FILE = Path(__file__).with_name("catalogue.json")

_METHODS = Path(__file__).parents[1] / "methods"

_HIDDEN = {  # what a recipe has no say in, as the run supplies it
    "model": ("num_classes", "in_channels"),
    "dataset": ("train", "augment"),
    "optimizer": ("params",),
    "scheduler": ("optimizer",),
    "dataloader": ("dataset", "batch_size", "sampler", "drop_last"),
}

_IN_FULL = ("method", "policy", "perturbation", "descent", "samples", "schedule")  # whose whole cards `explain` shows


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
    table = json.loads(_FILE.read_text(encoding="utf-8"))
    if table["made_for"] != _installed() and _version("mosaicml") is not None:
        table = build()
    groups = {group: {name: _form(entry) for name, entry in forms.items()} for group, forms in table["names"].items()}
    return Catalogue({**groups, "algorithm": {**groups["algorithm"], **groups["method"]}})


def build() -> dict[str, Any]:
    """Make the table.

    Returns:
        dict[str, Any]: What the file holds.
    """
    from torch.utils.data import DataLoader

    from sam_algos import METHODS, PARTS, SharpnessAware
    from sam_algos.recipes import components
    from sam_algos.recipes.datasets import DATASETS
    from sam_algos.recipes.models import models

    methods = {**METHODS, components.COMPOSED: SharpnessAware}
    groups: dict[str, Mapping[str, Any]] = {
        "method": methods,
        **PARTS,
        "algorithm": {name: cls for name, cls in components.algorithms().items() if name not in methods},
        "dataset": DATASETS,
        "model": models(),
        "optimizer": components.optimizers(),
        "scheduler": components.schedulers(),
        "callback": components.callbacks(),
        "logger": components.loggers(),
        "dataloader": {"dataloader": DataLoader},
    }
    names = {
        group: {name: _entry(group, factory) for name, factory in sorted(members.items())}
        for group, members in groups.items()
    }
    return {"made_for": _installed(), "names": names}


def _entry(group: str, factory: Any) -> dict[str, Any]:
    form = asdict(describe(factory, _HIDDEN.get(group, ())))
    if isinstance(factory, partial):  # torchvision's networks and the like: their names say it
        form["doc"] = ""
    if group not in _IN_FULL:
        form["doc"] = " ".join(form["doc"].partition("\n\n")[0].split())
    form["arguments"] = {
        name: [*argument["kinds"], argument["default"]] for name, argument in form["arguments"].items()
    }
    return form


def _form(entry: Mapping[str, Any]) -> Form:
    arguments = {name: Argument(tuple(kinds), default) for name, (*kinds, default) in entry["arguments"].items()}
    return Form(arguments, entry["takes_others"], entry["doc"])


def _installed() -> dict[str, str | None]:
    """What the table depends on, and what can change without it."""
    source = "".join(path.read_text(encoding="utf-8") for path in sorted(_METHODS.glob("*.py")))
    versions = {name: _version(name) for name in ("mosaicml", "torch", "torchvision")}
    return {**versions, "methods": hashlib.sha256(source.encode()).hexdigest()[:16]}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def text(table: dict[str, Any]) -> str:
    """The table as it stands in the file: JSON with a line for each name.

    Args:
        table (dict[str, Any]): From `build`.

    Returns:
        str: The text.
    """
    names = (
        f"{json.dumps(group)}: {{\n"
        + ",\n".join(f"{json.dumps(name)}: {json.dumps(form, ensure_ascii=False)}" for name, form in forms.items())
        + "\n}"
        for group, forms in table["names"].items()
    )
    return f'{{"made_for": {json.dumps(table["made_for"])},\n"names": {{\n' + ",\n".join(names) + "\n}}\n"


if __name__ == "__main__":
    _FILE.write_text(text(build()), encoding="utf-8")
    print(f"wrote {_FILE}", file=sys.stderr)
