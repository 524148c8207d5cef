"""From a recipe's file or name, and ``key=value`` overrides, to a `Recipe`."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sam_algos.recipes.choice import Layer, laid_together, rows_of
from sam_algos.recipes.errors import RecipeError, unknown
from sam_algos.recipes.find import Found, find
from sam_algos.recipes.schema import FILE_KEYS, Recipe
from sam_algos.recipes.shape import KEYS, check_layer, checked, is_text

_OMEGACONF_ERRORS = (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError)

_Tree = dict[str, Any]  # plain Python values, interpolations not yet resolved


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and lay together all that was written about it: what is nearer to the user is on top.

    From the bottom to the top, each key by key over what is below it (see `lay`):

    1. the file that ``base:`` names, itself with its own base below it;
    2. that file's row of the method, ``methods.NAME``;
    3. the file itself;
    4. its own row of the method;
    5. the overrides, in any order: ``optimizer.lr=0.1`` is laid over ``optimizer.name=adamw``, as it is more specific,
       and of two for the same key the later one wins.

    The method is the topmost ``method: NAME``; ``RECIPE/NAME`` and ``method=NAME`` are above the files. NAME is a row,
    or any sharpness-aware method, whose defaults are then at the bottom. The name of the recipe's own optimizer stands
    for training without a method, as does ``method: null``. A method replaces other methods in the ``algorithms`` of
    the layers below it; options of its own that stand there are kept.

    Args:
        name (str | Path): A file, or the name of a shipped recipe; see `find`.
        overrides (Sequence[str], optional): ``key=value`` with dotted keys. Default: ``()``.

    Returns:
        Recipe: Complete and resolved, every key of the right type and in its range. What its names stand for is for
        `check_names`.

    Raises:
        RecipeError: For everything that is wrong with the file, its bases or the overrides.

    Example:
        >>> load_recipe("digits", ["method=sam", "algorithms.sam.rho=0.1"]).algorithms["sam"]
        {'rho': 0.1}
    """
    found = find(name)
    layers = [*_read(found.path, ()), *_asked(found)]
    layers += _overriding(overrides)
    return checked(_resolved(laid_together(layers)))


def methods_of(name: str | Path) -> list[str]:
    """The rows of a recipe's table of methods.

    Args:
        name (str | Path): As for `load_recipe`.

    Returns:
        list[str]: In the file's order.

    Raises:
        RecipeError: For whatever is wrong with the file.
    """
    return rows_of(_read(find(name).path, ()))


def dump_recipe(recipe: Recipe) -> str:
    """The YAML text of a recipe: what `load_recipe` reads back as the same recipe.

    Args:
        recipe (Recipe): A resolved recipe.

    Returns:
        str: YAML.
    """
    values = {key.name: getattr(recipe, key.name) for key in fields(Recipe)}
    return OmegaConf.to_yaml(OmegaConf.create(values))


def _read(path: Path, above: tuple[Path, ...]) -> list[Layer]:
    """The layers of the file at `path`, its bases first; `above` are the files that led here."""
    if path.resolve() in above:
        raise RecipeError(str(path), "base: leads back to this file")
    tree = _document(path)
    keys = {key: value for key, value in tree.items() if key not in FILE_KEYS}
    given = {key: tree[as_] for key, as_ in (("rows", "methods"), ("method", "method")) if as_ in tree}
    layer, base = Layer(str(path), keys, **given), tree.get("base")
    if base is None:
        return [layer]
    if not isinstance(base, str):
        raise RecipeError(str(path), f"base: {base!r} is not a path")
    beside = path.parent / base
    found = find(beside if beside.is_file() else base)
    return [*_read(found.path, (*above, path.resolve())), *_asked(found), layer]


def _asked(found: Found) -> list[Layer]:
    """The method in ``RECIPE/METHOD``."""
    return [] if found.method is None else [Layer(f"method={found.method}", {}, method=found.method)]


def _overriding(overrides: Sequence[str]) -> list[Layer]:
    """A layer for each override, the more specific ones on top."""
    layers = []
    for override in sorted(overrides, key=_depth):
        tree = _parse(override)
        check_layer(tree, "")
        layers.append(Layer(override, tree) if "method" not in tree else Layer(override, {}, method=tree["method"]))
    return layers


def _depth(override: str) -> int:
    """How specific an override is: a name is as its section, since another name replaces the section."""
    return override.partition("=")[0].removesuffix(".name").count(".")


def _document(path: Path) -> _Tree:
    try:
        text = path.read_text(encoding="utf-8")
        starts = sum(isinstance(event, yaml.DocumentStartEvent) for event in yaml.parse(text))
        tree = OmegaConf.to_container(OmegaConf.load(io.StringIO(text))) if starts == 1 else {}
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise RecipeError(str(path), f"not YAML: {line}{error.problem or error.context}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(str(path), "not a text file") from error
    except OSError as error:
        raise RecipeError(str(path), error.strerror or error) from error
    except _OMEGACONF_ERRORS as error:
        raise RecipeError(str(path), _summary(error)) from error
    if starts != 1:
        raise RecipeError(str(path), f"must hold one YAML document, the keys of a recipe; it has {starts or 'none'}")
    tree = _known(tree, str(path), (*KEYS, *FILE_KEYS))
    rows = tree.get("methods") or {}
    for name, row in rows.items() if isinstance(rows, dict) else [("", rows)]:
        where = f"{path}: methods.{name}".rstrip(".")
        check_layer(_known({} if row is None else row, where, KEYS), f"{where}: ")
    check_layer(tree, f"{path}: ")
    return tree


def _parse(override: str) -> _Tree:
    key, equals, text = override.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
        raise RecipeError(override, "not an override: write key=value, e.g. max_duration=20ep")
    if is_text(key) and re.fullmatch(r"[-+.\w]+", text) and text.lower() not in ("null", "true", "false"):
        return {key: text}  # as it stands: a run may be called 007, or 12e4567
    try:
        tree = OmegaConf.to_container(OmegaConf.from_dotlist([override]))
    except _OMEGACONF_ERRORS as error:
        raise RecipeError(override, f"not a value: {_summary(error)}") from error
    return _known(tree, override, (*KEYS, "method"))


def _known(tree: Any, where: str, valid: Iterable[str]) -> _Tree:
    """`tree` if it is a mapping of `valid` keys, and all keys in it are text."""
    if not isinstance(tree, dict):
        raise RecipeError(where, "not a mapping of keys to values")
    for key in _keys_of(tree):
        if not isinstance(key, str):
            raise RecipeError(where, f"the key {key!r} is not text: quote it")
    for key in tree:
        if key not in valid:
            raise unknown(where, "key", key, valid)
    return cast(_Tree, tree)


def _keys_of(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys_of(item)


def _resolved(tree: _Tree) -> _Tree:
    """`tree` with the defaults, and with ``${...}`` filled in."""
    defaults = vars(Recipe())
    try:
        config = OmegaConf.create({**defaults, **tree})
        OmegaConf.resolve(config)
        return cast(_Tree, OmegaConf.to_container(config))
    except _OMEGACONF_ERRORS as error:
        raise RecipeError(getattr(error, "full_key", None) or "recipe", _summary(error)) from error


def _summary(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
