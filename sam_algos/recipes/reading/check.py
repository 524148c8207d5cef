"""The check of a recipe: its keys, the names in it and their arguments, as far as no library has to be imported."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sam_algos.recipes.errors import RecipeError, unknown
from sam_algos.recipes.naming.arguments import Argument, Form, check, describe, mismatch
from sam_algos.recipes.naming.catalogue import catalogue
from sam_algos.recipes.naming.names import arguments_of, lookup, spelling
from sam_algos.recipes.schema import COLLECTIONS, REQUIRED, SECTIONS, Recipe

_FORM = describe(Recipe)

KEYS = _FORM.arguments
"""The keys of a recipe, with what each may be."""

_MAPPINGS = [key for key, argument in KEYS.items() if {"type": "object"} in argument.options]

_LABELS = ("train", "eval")
"""What Composer calls the data of a recipe."""

_Tree = dict[str, Any]


def is_interpolation(value: Any) -> bool:
    """Whether a value is text with ``${...}`` in it, which is filled in when all layers are laid together."""
    return isinstance(value, str) and "${" in value


def check_layer(tree: _Tree, where: str) -> None:
    """Refuse a layer with anything but a mapping where a section or a collection stands: a layer above would hide it.

    Null, ``???`` and interpolations may stand for any value. `where` is put before the key at fault, in the error.
    """
    for key, value in _mappings(tree):
        if value is not None and value != REQUIRED and not is_interpolation(value):
            _refuse_no_mapping(where, key, value)


def checked(tree: _Tree) -> Recipe:
    """The recipe, if all its values have the types, shapes and ranges that building it relies on.

    Raises:
        RecipeError: For the first key that has not.
    """
    tree = {key: _converted(argument, tree[key]) for key, argument in KEYS.items()}
    for key, value in _mappings({collection: tree[collection] for collection in COLLECTIONS}):
        _refuse_no_mapping("", key, value)
    check("", _FORM, tree)
    for section in SECTIONS:
        if tree[section] is not None and not isinstance(tree[section].get("name"), str):
            raise RecipeError(f"{section}.name", "required")
    return Recipe(**tree)


def check_names(recipe: Recipe) -> None:
    """Check all names of a recipe and their arguments against the `catalogue`.

    Args:
        recipe (Recipe): A resolved recipe.

    Raises:
        RecipeError: For what is wrong with it. What only data, devices and the libraries themselves can tell is left to
            ``prepare`` in ``sam_algos.recipes.run``.
    """
    for where, group, name, arguments in named(vars(recipe)):
        _check(where, lookup(f"{where}.name" if where in SECTIONS else where, group, name, _names(group)), arguments)
        label = arguments.get("dataloader_label")
        if group == "callback" and label is not None and label not in _LABELS:
            raise unknown(f"{where}.dataloader_label", "label", label, _LABELS)
    for key, number in _numbers("optimizer", recipe.optimizer):
        if not math.isfinite(number):
            raise RecipeError(key, f"must be finite, got {number}")
    check("dataloader", _names("dataloader")["dataloader"], recipe.dataloader)
    methods = {spelling(name) for name in _names("method")}
    refuse_several_methods([name for name in recipe.algorithms if spelling(name) in methods])
    _check_batch(recipe)
    _check_paths(recipe)


def named(tree: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, Mapping[str, Any]]]:
    """All that the keys of a recipe name: where, what it is, its name, and its arguments.

    For example ``("optimizer", "optimizer", "sgd", {"lr": 0.1})`` and ``("algorithms.sam", "algorithm", "sam", {})``.
    """
    for key, group in SECTIONS.items():
        if isinstance(section := tree.get(key), Mapping):
            yield key, group, section.get("name"), arguments_of(section)
    for key, group in COLLECTIONS.items():
        if isinstance(entries := tree.get(key), Mapping):
            yield from ((f"{key}.{name}", group, name, arguments) for name, arguments in entries.items())


def refuse_several_methods(names: list[str]) -> None:
    """Refuse more than one of the sharpness-aware methods among the algorithms of a recipe."""
    if len(names) > 1:
        raise RecipeError(
            "algorithms",
            f"{' and '.join(names)} cannot be combined: a run has one sharpness-aware method; choose it with "
            f"method=NAME, or take one out, e.g. algorithms.{names[0]}=null",
        )


def _mappings(tree: _Tree) -> Iterator[tuple[str, Any]]:
    """The values that should be mappings: sections and the like, and in collections each entry."""
    for key in _MAPPINGS:
        if key in tree:
            yield key, tree[key]
            if key in COLLECTIONS and isinstance(tree[key], dict):
                yield from ((f"{key}.{name}", arguments) for name, arguments in tree[key].items())


def _refuse_no_mapping(where: str, key: str, value: Any) -> None:
    if isinstance(value, dict):
        return
    name = value if isinstance(value, str) and value.isidentifier() else "NAME"
    if "." in key:
        problem = f"{value!r} is not a mapping of arguments; write {key}={{}}"
    elif key in COLLECTIONS:
        what = f"each {COLLECTIONS[key]}'s name to its arguments"
        problem = f"must map {what}, got {value!r}; write {key}.{name}={{}}"
    else:
        problem = mismatch(KEYS[key], value)
    raise RecipeError(f"{where}{key}", problem)


def _converted(argument: Argument, value: Any) -> Any:
    """`value` as the type that the key has, where they say the same: the environment's numbers are text."""
    if isinstance(value, int) and not isinstance(value, bool) and argument.is_only("string", "null"):
        return str(value)
    if isinstance(value, str) and {"type": "string"} not in argument.options and re.fullmatch(r"[-+.\w]+", value):
        plain = yaml.safe_load(value)
        return plain if isinstance(plain, (bool, int, float)) else value
    return value


def _names(group: str) -> Mapping[str, Form]:
    return catalogue().groups[group]


def _check(where: str, form: Form, arguments: Mapping[str, Any]) -> None:
    """Check arguments, and those of the parts among them."""
    check(where, form, arguments)
    for name, argument in form.arguments.items():
        part, key = arguments.get(name), f"{where}.{name}"
        if argument.part is not None and isinstance(part, Mapping):
            inner = lookup(f"{key}.name", argument.part, part["name"], _names(argument.part))
            _check(key, inner, arguments_of(part))


def _numbers(where: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield where, value
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in entries:
        yield from _numbers(f"{where}.{key}", item)


def _check_batch(recipe: Recipe) -> None:
    """Refuse batches that are larger than the training set, where its size is known without opening it."""
    given, size = recipe.train_dataset, recipe.global_train_batch_size
    samples = lookup("train_dataset.name", "dataset", given["name"], _names("dataset")).samples
    if isinstance(given.get("train_subset"), int):
        samples = given["train_subset"]
    elif samples is not None:
        samples -= given.get("validation") or 0
    if samples is not None and size > samples:
        raise RecipeError("global_train_batch_size", f"{size} is more than the {samples} training samples")


def _check_paths(recipe: Recipe) -> None:
    if recipe.bootstrap and recipe.load_path is not None and not recipe.load_weights_only:
        raise RecipeError("load_path", "with bootstrap every training starts from it: needs load_weights_only=true")
    if recipe.load_path is not None and "://" not in recipe.load_path and not Path(recipe.load_path).exists():
        raise RecipeError("load_path", f"no such file: {recipe.load_path}")
    if recipe.autoresume and (recipe.run_name is None or recipe.save_folder is None):
        raise RecipeError("autoresume", "needs a run_name and a save_folder to go on from")
    try:
        recipe.run_folder.format(run_name=recipe.run_name)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise RecipeError("run_folder", f"cannot fill in {recipe.run_folder!r}: {error}") from error
    if recipe.eval_dataset and "evaluate" in recipe.train_dataset:
        raise RecipeError("train_dataset.evaluate", "must be left out where eval_dataset says what to evaluate on")
