"""Laying one part of a recipe over another."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from sam_algos.recipes.errors import RecipeError
from sam_algos.recipes.names import spelling
from sam_algos.recipes.schema import COLLECTIONS, SECTIONS
from sam_algos.recipes.shape import is_interpolation

_Tree = dict[str, Any]


def lay(below: _Tree, above: _Tree, where: str) -> _Tree:
    """Lay `above` over `below`, key by key.

    * A section that names something else (``optimizer: {name: adamw, ...}`` over ``sgd``) replaces the section below,
      whose arguments mean nothing to it. A part of a method (``policy``, ``perturbation``, a schedule for ``rho``, ...)
      is such a section too.
    * In `algorithms`, `callbacks` and `loggers` a null value removes the entry below
      (``algorithms: {sam: null, asam: {rho: 0.5}}``, or ``algorithms.sam=null`` as an override), and
      ``algorithms=null`` removes all. A name is the same in any spelling.

    Args:
        below (dict): Plain values.
        above (dict): The same.
        where (str): Where `above` is from, for errors.

    Returns:
        dict: A new tree.

    Raises:
        RecipeError: If an entry is removed that is not there or stands there twice, and if a mapping meets an
            interpolation, which is filled in only after all is laid together.
    """
    laid = deepcopy(below)
    for key, value in deepcopy(above).items():
        if key in COLLECTIONS:
            laid[key] = _entries(laid.get(key), value, key, where)
        else:
            _refuse_interpolation(laid.get(key), value, key, where)
            laid[key] = (_section if key in SECTIONS else _merged)(laid.get(key), value)
    return laid


def _entries(below: Any, above: Any, collection: str, where: str) -> Any:
    """A collection over another."""
    if above is None:
        return {}
    _refuse_interpolation(below, above, collection, where)
    if not isinstance(above, dict):
        return above
    entries = dict(below) if isinstance(below, dict) else {}
    for number, (name, arguments) in enumerate(above.items()):
        if twin := spelled(name, list(above)[:number]):
            raise RecipeError(where, f"{collection}: {twin} and {name} are the same: write one of them")
        there = spelled(name, entries)
        if arguments is None and there is None:
            raise RecipeError(where, f"{collection}.{name}: null removes an entry, and there is none; {{}} adds one")
        if arguments is None:
            del entries[there]
            continue
        name = name if there is None else there
        _refuse_interpolation(entries.get(name), arguments, f"{collection}.{name}", where)
        entries[name] = _merged(entries.get(name), arguments, _section if collection == "algorithms" else _merged)
    return entries


def _section(below: Any, above: Any) -> Any:
    """One named thing, and those within it, over another."""
    if isinstance(below, dict) and isinstance(above, dict) and not _same(above.get("name"), below.get("name")):
        return above
    return _merged(below, above, _section)


def _merged(below: Any, above: Any, inner: Any = None) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return {**below, **{key: (inner or _merged)(below.get(key), value) for key, value in above.items()}}


def _same(name: Any, below: Any) -> bool:
    """Whether a section goes on with the name below: it has none, or the same in any spelling."""
    both = isinstance(name, str) and isinstance(below, str)
    return name is None or name == below or (both and spelling(name) == spelling(below))


def spelled(name: Any, table: Iterable[Any]) -> Any:
    """A name as it is spelled in a table.

    Args:
        name (Any): In any spelling.
        table (Iterable): The names that there are.

    Returns:
        Any: The name in the table, None where it is not there.

    Example:
        >>> spelled("LookSAM", ["sam", "looksam"])
        'looksam'
    """
    names = list(table)
    if name in names or not isinstance(name, str):
        return name if name in names else None
    return next((key for key in names if isinstance(key, str) and spelling(key) == spelling(name)), None)


def _refuse_interpolation(below: Any, above: Any, key: str, where: str) -> None:
    """Refuse to replace in silence what was meant to be changed."""
    for one, other in ((below, above), (above, below)):
        if is_interpolation(one) and isinstance(other, dict):
            raise RecipeError(where, f"{key}: {one!r} cannot be laid together with {other!r}: write its entries out")
