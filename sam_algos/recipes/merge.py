"""Laying one part of a recipe over another."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from sam_algos.recipes.errors import RecipeError
from sam_algos.recipes.names import spelling
from sam_algos.recipes.schema import COLLECTIONS, SECTIONS

_Tree = dict[str, Any]


def lay(below: _Tree, above: _Tree, where: str) -> _Tree:
    """`above` over `below`, key by key.

    * A section that names something else (``optimizer: {name: adamw, ...}`` over ``sgd``) replaces the section below:
      arguments of the one mean nothing to the other. The parts of `algorithms.sharpness_aware` are such sections too.
    * In `algorithms`, `callbacks` and `loggers` a null value removes the entry below
      (``algorithms: {sam: null, asam: {rho: 0.5}}``, or ``algorithms.sam=null`` as an override), and
      ``algorithms=null`` removes all.

    Args:
        below (dict): Plain values.
        above (dict): The same.
        where (str): Where `above` is from, for errors.

    Returns:
        dict: A new tree.

    Raises:
        RecipeError: If an entry is removed that is not there.
    """
    below, above = deepcopy(below), deepcopy(above)
    _drop_renamed(below, above, SECTIONS)
    if isinstance(parts := _composed(above), dict) and isinstance(parts_below := _composed(below), dict):
        _drop_renamed(parts_below, parts, list(parts))
    for collection in COLLECTIONS:
        if collection in above:
            _remove_nulls(below, above, collection, where)
    return _merged(below, above)


def _merged(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return {**below, **{key: _merged(below.get(key), value) for key, value in above.items()}}


def _drop_renamed(below: _Tree, above: _Tree, sections: Sequence[str]) -> None:
    """Take out of ``below`` the sections that name something else in ``above``."""
    for section in sections:
        if not _same(_name(above.get(section)), _name(below.get(section))):
            below.pop(section, None)


def _same(name: Any, below: Any) -> bool:
    """Whether a section goes on with the name below: it has none, or the same in any spelling."""
    both = isinstance(name, str) and isinstance(below, str)
    return name is None or name == below or (both and spelling(name) == spelling(below))


def _composed(tree: _Tree) -> Any:
    """What `algorithms.sharpness_aware` holds, whose parts are sections too."""
    algorithms = tree.get("algorithms")
    return algorithms.get("sharpness_aware") if isinstance(algorithms, dict) else None


def _name(section: Any) -> Any:
    return section.get("name") if isinstance(section, dict) else None


def _remove_nulls(below: _Tree, above: _Tree, collection: str, where: str) -> None:
    """Take out of both trees what `above` sets to null."""
    entries, there = above[collection], below.get(collection)
    if entries is None:
        del above[collection]
        below.pop(collection, None)
    if not isinstance(entries, dict):
        return
    for name in [name for name, arguments in entries.items() if arguments is None]:
        if not isinstance(there, dict) or name not in there:
            key = f"{collection}.{name}"
            raise RecipeError(where, f"{key}: null removes an entry, and there is none; {{}} adds one")
        del there[name], entries[name]
