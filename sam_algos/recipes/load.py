"""From a YAML file and ``key=value`` overrides to a `Recipe`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sam_algos.recipes.errors import RecipeError, unknown
from sam_algos.recipes.schema import COLLECTIONS, SECTIONS, Recipe

_KEYS = [key.name for key in fields(Recipe)]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, lay it over its ``base:`` files, apply overrides, and check the result.

    A file may name another with ``base:`` (relative to itself); its own keys are laid over that one's:

    * A section that names something else (``optimizer: {name: adamw, ...}`` over ``sgd``) replaces the
      base's section: arguments of the one mean nothing to the other.
    * In `algorithms`, `callbacks` and `loggers` a null value removes the base's entry
      (``algorithms: {sam: null, asam: {rho: 0.5}}``, or ``algorithms.sam=null`` as an override).
    * All else is merged key by key, then ``${...}`` is resolved.

    Args:
        path (str | Path): The YAML file.
        overrides (Sequence[str], optional): ``key=value`` with dotted keys. Default: ``()``.

    Returns:
        Recipe: Complete and resolved. What its names stand for is looked up when they are built.

    Raises:
        RecipeError: For everything that is wrong with the file, its bases or the overrides.
    """
    config = _read(Path(path), ())
    for override in overrides:
        config = _merge(config, _parse(override), override)
    return _resolve(config)


def dump_recipe(recipe: Recipe) -> str:
    """The YAML text of a recipe: what `load_recipe` reads back as the same recipe.

    Args:
        recipe (Recipe): A resolved recipe.

    Returns:
        str: YAML.
    """
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def _read(path: Path, above: tuple[Path, ...]) -> DictConfig:
    """The file at `path` merged over its bases; `above` are the files that led here."""
    if path.resolve() in above:
        raise RecipeError(str(path), "base: leads back to this file")
    config = _document(path)
    base = config.pop("base", None)
    if base is None:
        return _merge(OmegaConf.create(), config, str(path))
    if not isinstance(base, str):
        raise RecipeError(f"{path}: base", f"{base!r} is not a path")
    return _merge(_read(path.parent / base, (*above, path.resolve())), config, str(path))


def _document(path: Path) -> DictConfig:
    try:
        config = OmegaConf.load(path)
    except FileNotFoundError:
        raise RecipeError(str(path), "no such recipe file") from None
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise RecipeError(str(path), f"not YAML: {line}{error.problem or error.context}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(str(path), _first_line(error)) from error
    return _checked(config, str(path))


def _parse(override: str) -> DictConfig:
    key, equals, _ = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise RecipeError(override, "not an override: write key=value, e.g. max_duration=20ep")
    try:
        config = OmegaConf.from_dotlist([override])
    except (ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise RecipeError(override, f"not a value: {_first_line(error)}") from error
    return _checked(config, override)


def _checked(config: Any, where: str) -> DictConfig:
    """`config` if it is a mapping of known keys, and strings are its keys all the way down."""
    if not isinstance(config, DictConfig):
        raise RecipeError(where, "not a mapping of keys to values")
    for key in _all_keys(OmegaConf.to_container(config)):
        if not isinstance(key, str):
            raise RecipeError(where, f"the key {key!r} is not text: quote it")
    for key in config:
        if key not in (*_KEYS, "base"):
            raise unknown(where, "key", key, _KEYS)
    return config


def _all_keys(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _all_keys(item)


def _merge(base: DictConfig, delta: DictConfig, where: str) -> DictConfig:
    """`delta` over `base` by the rules of `load_recipe`."""
    below: dict[str, Any] = _plain(base)
    above: dict[str, Any] = _plain(delta)
    for section in SECTIONS:
        if _name(above.get(section)) not in (None, _name(below.get(section))):
            below.pop(section, None)
    for collection in COLLECTIONS:
        entries = above.get(collection)
        for name in [key for key, value in entries.items() if value is None] if isinstance(entries, dict) else []:
            _remove(below.get(collection), name, f"{where}: {collection}.{name}")
            del entries[name]
    try:
        return cast(DictConfig, OmegaConf.merge(below, above))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise RecipeError(where, _first_line(error)) from error


def _plain(config: DictConfig) -> dict[str, Any]:
    return cast("dict[str, Any]", OmegaConf.to_container(config))


def _name(section: Any) -> Any:
    return section.get("name") if isinstance(section, dict) else None


def _remove(entries: Any, name: str, where: str) -> None:
    if not isinstance(entries, dict) or name not in entries:
        raise RecipeError(where, f"null removes an entry and there is none here; write {name}: {{}} to add one")
    del entries[name]


def _resolve(config: DictConfig) -> Recipe:
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Recipe), config)
        OmegaConf.resolve(merged)
        recipe = OmegaConf.to_object(merged)
    except MissingMandatoryValue as error:
        raise RecipeError(str(error.full_key), "required") from error
    except OmegaConfBaseException as error:
        raise RecipeError(str(error.full_key or "recipe"), _first_line(error)) from error
    except (RecursionError, ValueError, TypeError) as error:
        raise RecipeError("recipe", _first_line(error)) from error
    return _validated(cast(Recipe, recipe))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _validated(recipe: Recipe) -> Recipe:
    """`recipe` if its sections have the shape that building it relies on."""
    for section in SECTIONS:
        arguments = getattr(recipe, section)
        if arguments is not None and not isinstance(arguments.get("name"), str):
            raise RecipeError(f"{section}.name", "required")
    for collection in COLLECTIONS:
        for name, arguments in getattr(recipe, collection).items():
            if not isinstance(arguments, dict):
                raise RecipeError(f"{collection}.{name}", f"{arguments!r} is not a mapping of arguments")
    for key in ("global_train_batch_size", "global_eval_batch_size"):
        size = getattr(recipe, key)
        if size is not None and size < 1:
            raise RecipeError(key, f"must be at least 1, got {size}")
    return recipe
