"""Laying the layers of a recipe over each other, with the rows of the chosen method."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

from sam_algos.recipes.errors import RecipeError, unknown
from sam_algos.recipes.naming.catalogue import catalogue
from sam_algos.recipes.naming.names import spelling
from sam_algos.recipes.reading.check import is_interpolation
from sam_algos.recipes.schema import COLLECTIONS, FILE_KEYS, SECTIONS

_Tree = dict[str, Any]


class Layer(NamedTuple):
    """A file, or an override.

    Args:
        where (str): What it is, for errors.
        tree (dict): The keys that it sets. A row of its ``methods`` that is null replaces the rows of that name below
            by an empty one; where ``methods`` itself is null, all rows below are gone.
    """

    where: str
    tree: _Tree

    @property
    def keys(self) -> _Tree:
        """The keys of a recipe among them."""
        return {key: value for key, value in self.tree.items() if key not in FILE_KEYS}

    @property
    def rows(self) -> _Tree | None:
        """Its ``methods``."""
        return self.tree.get("methods", {})


def laid_together(layers: Sequence[Layer]) -> _Tree:
    """Lay the layers of a recipe over each other, from the bottom, each with its own row of the chosen method above it.

    The topmost ``method`` chooses, and takes the place of the methods in the ``algorithms`` of the layers below. Where
    it is a sharpness-aware method and no layer up to its own has options for it, its defaults are added.

    Raises:
        RecipeError: If there is no such method, and for what cannot be laid together (see `_lay`).
    """
    chooser = max((number for number, layer in enumerate(layers) if "method" in layer.tree), default=-1)
    method = layers[chooser].tree["method"] if chooser >= 0 else None
    methods = catalogue().groups["method"] if chooser >= 0 else {}
    if method is not None:
        _refuse_unknown(method, layers, methods)
    sharp, tree = spelled(method, methods), {}
    for number, layer in enumerate(layers):
        keys = _without_methods(layer.keys, sharp, methods) if number < chooser else layer.keys
        tree = _lay(tree, keys, layer.where)
        if row := _row(method, number, layers):
            tree = _lay(tree, row, f"{layer.where}: methods.{method}")
        if number == chooser and sharp is not None and spelled(sharp, tree.get("algorithms") or ()) is None:
            tree = _lay(tree, {"algorithms": {sharp: {}}}, f"method={method}")
    return tree


def rows_of(layers: Sequence[Layer]) -> list[str]:
    """The names of all rows, each once, from the bottom layer to the top."""
    above_the_last_null = max((number for number, layer in enumerate(layers) if layer.rows is None), default=-1) + 1
    return list(dict.fromkeys(name for layer in layers[above_the_last_null:] for name in layer.rows or ()))


def spelled(name: Any, table: Iterable[Any]) -> Any:
    """A name as it is spelled in a table, None where it is not there.

    Example:
        >>> spelled("LookSAM", ["sam", "looksam"])
        'looksam'
    """
    names = list(table)
    if name in names or not isinstance(name, str):
        return name if name in names else None
    return next((key for key in names if isinstance(key, str) and spelling(key) == spelling(name)), None)


def _row(method: Any, number: int, layers: Sequence[Layer]) -> _Tree | None:
    """The row of a method in a layer, if none above takes it away."""
    found = [layer.rows if layer.rows is None else layer.rows.get(spelled(method, layer.rows), {}) for layer in layers]
    return found[number] if None not in found[number + 1 :] else None


def _without_methods(keys: _Tree, kept: str | None, methods: Mapping[str, Any]) -> _Tree:
    """The keys of a layer without the sharpness-aware methods that the chosen one replaces."""
    if not isinstance(algorithms := keys.get("algorithms"), dict):
        return keys
    gone = [
        name for name in algorithms if (known := spelled(name, methods)) and (known != kept or not algorithms[name])
    ]
    return {**keys, "algorithms": {name: given for name, given in algorithms.items() if name not in gone}}


def _refuse_unknown(method: Any, layers: Sequence[Layer], methods: Mapping[str, Any]) -> None:
    """Refuse a method that is no row, no sharpness-aware method and not the recipe's own optimizer."""
    tree: _Tree = {}
    for layer in layers:
        tree = _lay(tree, {"optimizer": layer.keys["optimizer"]} if "optimizer" in layer.keys else {}, layer.where)
    section = tree.get("optimizer")
    plain = [section["name"]] if isinstance(section, dict) and isinstance(section.get("name"), str) else []
    valid = {*rows_of(layers), *methods, *plain}
    if spelled(method, valid) is None:
        raise unknown("method", "method", method, valid)


def _lay(below: _Tree, above: _Tree, where: str) -> _Tree:
    """Lay `above` over `below`, key by key.

    * A section with another name (``optimizer: {name: adamw, ...}`` over ``sgd``) replaces the section below, whose
      arguments do not apply. A part of a method (``policy``, a schedule for ``rho``, ...) is such a section, too.
    * In `algorithms`, `callbacks` and `loggers` a null value removes the entry below
      (``algorithms: {sam: null, asam: {rho: 0.5}}``, or ``algorithms.sam=null`` as an override), and
      ``algorithms=null`` removes all. A name is the same in any spelling.

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
            laid[key] = _merged(laid.get(key), value, sections=key in SECTIONS)
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
        entries[name] = _merged(entries.get(name), arguments, within=collection == "algorithms")
    return entries


def _merged(below: Any, above: Any, *, sections: bool = False, within: bool = False) -> Any:
    """A value over another; as `sections`, or within them, another name replaces all that is below."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    if sections and above.get("name") is not None and spelled(above["name"], [below.get("name")]) is None:
        return above
    inner = {key: _merged(below.get(key), value, sections=sections or within) for key, value in above.items()}
    return {**below, **inner}


def _refuse_interpolation(below: Any, above: Any, key: str, where: str) -> None:
    """Refuse to replace silently what the user meant to change."""
    for one, other in ((below, above), (above, below)):
        if is_interpolation(one) and isinstance(other, dict):
            raise RecipeError(where, f"{key}: {one!r} cannot be laid together with {other!r}: write its entries out")
