"""Makes the `catalogue` from the libraries themselves: ``python -m sam_algos.recipes.libraries`` writes it anew."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from sam_algos import METHODS, PARTS, SharpnessAware
from sam_algos.recipes import components
from sam_algos.recipes.catalogue import FILE, installed
from sam_algos.recipes.data.datasets import DATASETS
from sam_algos.recipes.data.models import classification_loss, models
from sam_algos.recipes.data.text_models import TEXT_MODELS
from sam_algos.recipes.forms import describe
from sam_algos.recipes.forwarded import forwarded

_HIDDEN = {  # what a recipe has no say in, as the run supplies it
    "model": ("num_classes", "in_channels", "in_features", "data"),
    "dataset": ("train", "augment"),
    "optimizer": ("params",),
    "scheduler": ("optimizer",),
    "dataloader": ("dataset", "batch_size", "sampler", "drop_last", "collate_fn"),
}

_IN_FULL = ("method", "policy", "perturbation", "descent", "samples", "schedule")  # whose whole cards `explain` shows


def build() -> dict[str, Any]:
    """Make the table.

    Returns:
        dict[str, Any]: What the file holds.
    """
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
    return {"made_for": installed(), "names": names}


def _entry(group: str, factory: Any) -> dict[str, Any]:
    described = describe(factory, _HIDDEN.get(group, ()))
    if described.takes_others:
        described = replace(described, arguments={**described.arguments, **forwarded(factory)}, takes_others=False)
    if group == "model" and factory not in TEXT_MODELS.values():
        described = replace(described, arguments={**described.arguments, **describe(classification_loss).arguments})
    form = asdict(replace(described, samples=getattr(factory, "samples", None)))
    if form["samples"] is None:
        del form["samples"]
    if isinstance(factory, partial):  # torchvision's networks and the like: their names say it
        form["doc"] = ""
    if group not in _IN_FULL:
        form["doc"] = " ".join(form["doc"].partition("\n\n")[0].split())
    form["arguments"] = {
        name: [*argument["kinds"], argument["default"]] for name, argument in form["arguments"].items()
    }
    return form


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
    FILE.write_text(text(build()), encoding="utf-8")
    print(f"wrote {FILE}", file=sys.stderr)
