"""The layers of a recipe, and the method it is trained with: a row of its tables, one with its defaults, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sam_algos.recipes.catalogue import catalogue
from sam_algos.recipes.errors import unknown
from sam_algos.recipes.merge import lay, spelled

_Tree = dict[str, Any]

_UNSAID: Any = object()


@dataclass(frozen=True)
class Layer:
    """A file, or an override.

    Args:
        where (str): What it is, for errors.
        keys (dict): The keys of a recipe that it sets.
        rows (dict | None): Its ``methods``; a row that is null replaces the rows of that name below by an empty one,
            and None takes all rows below away. Default: ``{}``.
        method (Any): Its ``method``. Default: it says none.
        compare (dict): Its ``compare``. Default: ``{}``.
    """

    where: str
    keys: _Tree
    rows: Mapping[str, _Tree | None] | None = field(default_factory=dict)
    method: Any = _UNSAID
    compare: _Tree = field(default_factory=dict)


def laid_together(layers: Sequence[Layer]) -> _Tree:
    """Lay the layers of a recipe over each other, each with its own row of the chosen method right above it.

    The topmost ``method`` chooses, and takes the place of the methods in the ``algorithms`` of the layers below. Where
    it is a sharpness-aware method and no layer up to its own has options for it, its defaults are added.

    Args:
        layers (Sequence[Layer]): From the bottom to the top.

    Returns:
        dict: The keys of a recipe.

    Raises:
        RecipeError: If there is no such method, and for what cannot be laid together (see `lay`).
    """
    chooser = max((number for number, layer in enumerate(layers) if layer.method is not _UNSAID), default=-1)
    method = layers[chooser].method if chooser >= 0 else None
    methods = catalogue().groups["method"] if chooser >= 0 else {}
    if method is not None:
        _refuse_unknown(method, layers, methods)
    sharp, tree = spelled(method, methods), {}
    for number, layer in enumerate(layers):
        keys = _without_methods(layer.keys, sharp, methods) if number < chooser else layer.keys
        tree = lay(tree, keys, layer.where)
        if row := _row(method, number, layers):
            tree = lay(tree, row, f"{layer.where}: methods.{method}")
        if number == chooser and sharp is not None and spelled(sharp, tree.get("algorithms") or ()) is None:
            tree = lay(tree, {"algorithms": {sharp: {}}}, f"method={method}")
    return tree


def rows_of(layers: Sequence[Layer]) -> list[str]:
    """The names of all rows, from the bottom layer to the top.

    Args:
        layers (Sequence[Layer]): Those of a recipe.

    Returns:
        list[str]: Each name once.
    """
    above_the_last_null = max((number for number, layer in enumerate(layers) if layer.rows is None), default=-1) + 1
    return list(dict.fromkeys(name for layer in layers[above_the_last_null:] for name in layer.rows or ()))


def _row(method: Any, number: int, layers: Sequence[Layer]) -> _Tree | None:
    """The row of a method in a layer, if none above takes it away."""
    found = [layer.rows if layer.rows is None else layer.rows.get(spelled(method, layer.rows), {}) for layer in layers]
    return found[number] if None not in found[number + 1 :] else None


def _without_methods(keys: _Tree, kept: str | None, methods: Mapping[str, Any]) -> _Tree:
    """The keys of a layer, without the sharpness-aware methods whose place another one takes."""
    if not isinstance(algorithms := keys.get("algorithms"), dict):
        return keys
    gone = [
        name for name in algorithms if (known := spelled(name, methods)) and (known != kept or not algorithms[name])
    ]
    return {**keys, "algorithms": {name: given for name, given in algorithms.items() if name not in gone}}


def _refuse_unknown(method: Any, layers: Sequence[Layer], methods: Mapping[str, Any]) -> None:
    """Refuse a method that is neither a row, nor a sharpness-aware method, nor the recipe's own optimizer."""
    optimizer: _Tree = {}
    for layer in layers:
        optimizer = lay(optimizer, {key: layer.keys[key] for key in ("optimizer",) if key in layer.keys}, layer.where)
    section = optimizer.get("optimizer")
    plain = [section["name"]] if isinstance(section, dict) and isinstance(section.get("name"), str) else []
    valid = {*rows_of(layers), *methods, *plain}
    if spelled(method, valid) is None:
        raise unknown("method", "method", method, valid)
