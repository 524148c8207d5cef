"""Which method a recipe is trained with: a row of its table, a method with its defaults, or none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sam_algos.recipes.catalogue import catalogue
from sam_algos.recipes.errors import unknown
from sam_algos.recipes.merge import lay
from sam_algos.recipes.names import spelling
from sam_algos.recipes.schema import FILE_KEYS

_Tree = dict[str, Any]


def with_method(tree: _Tree, method: Any, layers: Iterable[_Tree], *, instead: bool) -> _Tree:
    """A recipe with the row of its method laid over it.

    Args:
        tree (dict): The keys of a file.
        method (Any): The name of a row, a sharpness-aware method or the recipe's own optimizer, in any spelling; None
            for none of these.
        layers (Iterable[dict]): What will be laid over the result, which may name another optimizer.
        instead (bool): Whether `method` was asked for in place of what the file trains with.

    Returns:
        dict: Without ``FILE_KEYS``; with ``algorithms.NAME`` where `method` is a sharpness-aware one.

    Raises:
        RecipeError: If there is no such method.
    """
    rows = tree.get("methods") or {}
    tree = {key: value for key, value in tree.items() if key not in FILE_KEYS}
    known = catalogue().groups["method"] if method is not None or instead else {}
    if instead and isinstance(tree.get("algorithms"), dict):
        others = {name for name in tree["algorithms"] if _known(name, known) is not None}
        tree["algorithms"] = {name: given for name, given in tree["algorithms"].items() if name not in others}
    if method is None:
        return tree
    optimizers = {spelling(name): None for name in _optimizers([tree, *layers])}
    name = _known(method, rows) or _known(method, known)
    if name is None and not (isinstance(method, str) and spelling(method) in optimizers):
        raise unknown("method", "method", method, {*rows, *known})
    tree = lay(tree, rows.get(name) or {}, f"methods.{name}")
    algorithms = tree.get("algorithms")
    if name in known and (algorithms is None or isinstance(algorithms, dict)):
        there = {_known(given, known) for given in algorithms or {}}
        tree["algorithms"] = {**(algorithms or {}), **({} if name in there else {name: {}})}
    return tree


def _known(name: Any, table: Mapping[str, Any]) -> str | None:
    """The name as the table spells it."""
    if not isinstance(name, str):
        return None
    return name if name in table else next((key for key in table if spelling(key) == spelling(name)), None)


def _optimizers(trees: Iterable[_Tree]) -> Iterable[str]:
    for tree in trees:
        section = tree.get("optimizer")
        if isinstance(section, dict) and isinstance(section.get("name"), str):
            yield section["name"]
