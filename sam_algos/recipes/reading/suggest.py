"""What to write in place of a key that a recipe does not have: most likely it stands in one of the sections."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from sam_algos.recipes.errors import RecipeError
from sam_algos.recipes.naming.arguments import Form
from sam_algos.recipes.naming.catalogue import catalogue
from sam_algos.recipes.naming.names import lookup, spelling
from sam_algos.recipes.reading.check import KEYS, named
from sam_algos.recipes.reading.layers import spelled
from sam_algos.recipes.schema import COLLECTIONS

_COMMON = {
    "(num|max|n|train|numtrain)?epochs?": "max_duration={}ep",
    "(num|max|n|train)?(step|iteration|batche?)s?": "max_duration={}ba",
    "(global|train|trainingset)?(batchsize|bs)": "global_train_batch_size={}",
    "eval(uation)?batchsize": "global_eval_batch_size={}",
    "learningrate": "optimizer.lr={}",
    "wd": "optimizer.weight_decay={}",
    "(num)?workers": "dataloader.num_workers={}",
    "out(put)?(dir|folder)?": "run_folder={}",
    "data(dir|path|folder)?": "train_dataset.path={}",
    "resume": "run_name=NAME autoresume=true",
    "gpu|cuda": "device=gpu",
}
"""What other programs call some keys, without underscores."""


def instead(tree: Mapping[str, Any], key: str, value: Any) -> list[str]:
    """The overrides that somebody who wrote an unknown key may have meant, the most likely first.

    Example:
        >>> instead({"algorithms": {"aesam": {}}, "optimizer": {"name": "sgd"}}, "rho", 0.1)
        ['algorithms.aesam.rho=0.1']
        >>> instead({}, "epochs", 3)
        ['max_duration=3ep']
    """
    shown = value if isinstance(value, str) else json.dumps(value, default=str)
    first = key.partition(".")[0]
    if known := spelled(first, KEYS):
        return [f"{known}{key.removeprefix(first)}={shown}"]
    found = [f"{where}.{key}={shown}" for where, form in _forms(tree) if first in form.arguments]
    names = [f"{where}.{key}={shown}" for where, group in COLLECTIONS.items() if _form(first, group)]
    common = [text.format(shown) for pattern, text in _COMMON.items() if re.fullmatch(pattern, spelling(key))]
    return found or common or names


def _forms(tree: Mapping[str, Any]) -> Iterator[tuple[str, Form]]:
    """All that a recipe names, methods first and sections last, with where their arguments stand."""
    names = {where: (name, group) for where, group, name, _ in named(tree)}
    if form := _form(method := tree.get("method"), "method"):  # a method takes the place of those below
        names = {where: entry for where, entry in names.items() if not _form(entry[0], "method")}
        yield f"algorithms.{method}", form
    order = sorted(names, key=lambda where: (_form(names[where][0], "method") is None, "." not in where))
    yield from ((where, form) for where in order if (form := _form(*names[where])))
    yield "dataloader", catalogue().groups["dataloader"]["dataloader"]


def _form(name: Any, group: str) -> Form | None:
    try:
        return lookup("", group, name, catalogue().groups[group]) if isinstance(name, str) else None
    except RecipeError:
        return None
