"""All names that a recipe can use, with what each takes: made from the libraries once, and cached from then on."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache, partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from sam_algos.recipes.cache import cached
from sam_algos.recipes.naming.arguments import Argument, Form, describe

_PACKAGE = Path(__file__).parents[2]

_LIBRARIES = ("mosaicml", "torch", "torchvision", "transformers")

_HIDDEN = {  # what a recipe has no say in, as the run supplies it
    "model": ("num_classes", "in_channels", "in_features", "data"),
    "optimizer": ("params",),
    "scheduler": ("optimizer",),
    "dataloader": ("dataset", "batch_size", "sampler", "drop_last", "collate_fn"),
}

_IN_FULL = ("method", "policy", "perturbation", "descent", "samples", "schedule")  # whose whole cards `explain` shows


class Catalogue(NamedTuple):
    """Names and their forms.

    Args:
        groups (Mapping[str, Mapping[str, Form]]): By what they are (``method``, ``algorithm``, ``optimizer``, ...; an
            axis of parts by its own name) and by name. Methods are among the algorithms, too.
    """

    groups: Mapping[str, Mapping[str, Form]]


@cache
def catalogue() -> Catalogue:
    """The names that can be used with what is installed.

    They are read from the user's cache folder, without importing a library. The first use after an installation or an
    upgrade makes them, which takes seconds, and says so on stderr.

    Returns:
        Catalogue: The same for every caller.
    """
    table = cached(
        "catalogue.json", _installed(), _made,
        save=lambda made, path: path.write_text(json.dumps(made), encoding="utf-8"),
        load=lambda path: json.loads(path.read_text(encoding="utf-8")),
    )  # fmt: skip
    groups = {group: {name: _read(entry) for name, entry in entries.items()} for group, entries in table.items()}
    return Catalogue({**groups, "algorithm": {**groups["algorithm"], **groups["method"]}})


def _read(entry: Mapping[str, Any]) -> Form:
    arguments = {name: Argument(**argument) for name, argument in entry["arguments"].items()}
    return Form(**{**entry, "arguments": arguments})


def _installed() -> dict[str, str | None]:
    """What the names depend on: the versions of the libraries, and this package's files."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return {**{name: _version(name) for name in _LIBRARIES}, "python": sys.version, "sam_algos": digest.hexdigest()}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _made() -> dict[str, dict[str, Any]]:
    """The names and their forms, from the libraries themselves."""
    if find_spec("composer") is None:
        raise ModuleNotFoundError("Recipes need MosaicML Composer", name="composer")
    if os.environ.get("RANK", "0") == "0":
        print("listing what recipes can name with the libraries installed here; once, for seconds", file=sys.stderr)
    from sam_algos.recipes.naming.components import everything

    return {
        group: {name: asdict(_form(group, factory)) for name, factory in sorted(members.items())}
        for group, members in everything().items()
    }


def _form(group: str, factory: Any) -> Form:
    """What a name takes, and its doc: whole for what is ours, the first paragraph for others."""
    form = describe(factory, _HIDDEN.get(group, ()))
    if form.takes_others:
        from sam_algos.recipes.naming.forwarded import forwarded

        form = replace(form, arguments={**form.arguments, **forwarded(factory)}, takes_others=False)
    if group == "model" and "data" not in inspect.signature(factory).parameters:  # Hugging Face's have their own loss
        from sam_algos.recipes.data.models import classification_loss

        form = replace(form, arguments={**form.arguments, **describe(classification_loss).arguments})
    if isinstance(factory, partial):  # torchvision's networks and the like: their names say it
        return replace(form, doc="")
    first = " ".join(form.doc.partition("\n\n")[0].split())
    return form if group in _IN_FULL else replace(form, doc=first)
