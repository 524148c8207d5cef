"""Whether a recipe's names and arguments are there and in their ranges: what can be known without an import."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sam_algos.recipes.catalogue import Catalogue, catalogue
from sam_algos.recipes.errors import RecipeError, unknown
from sam_algos.recipes.forms import Form, check
from sam_algos.recipes.names import arguments_of, lookup, spelling
from sam_algos.recipes.schema import Recipe

_LABELS = ("train", "eval")
"""What Composer calls the data of a recipe."""


def check_names(recipe: Recipe) -> None:
    """Check all names of a recipe and their arguments against the `catalogue`.

    Args:
        recipe (Recipe): A resolved recipe.

    Raises:
        RecipeError: For what is wrong with it. What only data, devices and the libraries themselves can tell is left to
            ``prepare`` in ``sam_algos.recipes.run``.
    """
    names = catalogue()
    _check_sections(recipe, names)
    for collection, group in (("algorithms", "algorithm"), ("callbacks", "callback"), ("loggers", "logger")):
        for name, arguments in getattr(recipe, collection).items():
            where = f"{collection}.{name}"
            _check_with_parts(where, lookup(where, group, name, names.groups[group]), arguments, names)
            _check_label(where, arguments)
    check("dataloader", names.groups["dataloader"]["dataloader"], recipe.dataloader)
    _check_methods(recipe, names)
    _check_batch(recipe, names)
    _check_paths(recipe)


def refuse_several_methods(names: list[str]) -> None:
    """Refuse more than one sharpness-aware method.

    Args:
        names (list[str]): Those of a recipe.

    Raises:
        RecipeError: If there are several.
    """
    if len(names) > 1:
        raise RecipeError(
            "algorithms",
            f"{' and '.join(names)} cannot be combined: a run has one sharpness-aware method; choose it with "
            f"method=NAME, or take one out, e.g. algorithms.{names[0]}=null",
        )


def _check_sections(recipe: Recipe, names: Catalogue) -> None:
    groups = {"model": "model", "train_dataset": "dataset", "eval_dataset": "dataset", "optimizer": "optimizer"}
    for section, group in {**groups, "scheduler": "scheduler"}.items():
        given = getattr(recipe, section)
        if given is not None:
            form = lookup(f"{section}.name", group, given["name"], names.groups[group])
            check(section, form, arguments_of(given))
    for key, number in _numbers("optimizer", recipe.optimizer):
        if not math.isfinite(number):
            raise RecipeError(key, f"must be finite, got {number}")


def _numbers(where: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield where, value
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in entries:
        yield from _numbers(f"{where}.{key}", item)


def _check_with_parts(where: str, form: Form, arguments: Mapping[str, Any], names: Catalogue) -> None:
    check(where, form, arguments)
    for name, argument in form.arguments.items():
        part, key = arguments.get(name), f"{where}.{name}"
        if argument.part is not None and isinstance(part, Mapping):
            if not isinstance(part.get("name"), str):
                raise RecipeError(f"{key}.name", f"required: a part and its arguments, e.g. {key}={{name: ...}}")
            inner = lookup(f"{key}.name", argument.part, part["name"], names.groups[argument.part])
            _check_with_parts(key, inner, arguments_of(part), names)


def _check_label(where: str, arguments: Mapping[str, Any]) -> None:
    label = arguments.get("dataloader_label")
    if label is not None and label not in _LABELS:
        raise unknown(f"{where}.dataloader_label", "label", label, _LABELS)


def _check_methods(recipe: Recipe, names: Catalogue) -> None:
    methods = {spelling(name) for name in names.groups["method"]}
    refuse_several_methods([name for name in recipe.algorithms if spelling(name) in methods])


def _check_batch(recipe: Recipe, names: Catalogue) -> None:
    """Refuse batches that are larger than the training set, where its size is known without opening it."""
    given, size = recipe.train_dataset, recipe.global_train_batch_size
    samples = lookup("train_dataset.name", "dataset", given["name"], names.groups["dataset"]).samples
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
