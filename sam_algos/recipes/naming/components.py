"""What a recipe can name besides models and data: each name's class, from the libraries' own lists."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from types import ModuleType
from typing import Any

import composer.algorithms
import composer.callbacks
import composer.loggers
import composer.optim
import torch
from composer import Algorithm, Callback
from composer.loggers import Logger, LoggerDestination
from composer.optim import ComposerScheduler
from torch.optim.lr_scheduler import LRScheduler

from sam_algos import METHODS, PARTS, Method, Part, SharpnessAware
from sam_algos.recipes.check import refuse_several_methods
from sam_algos.recipes.errors import RecipeError
from sam_algos.recipes.names import arguments_of, construct, lookup
from sam_algos.trainer import RecalibrateBatchNorm

COMPOSED = "sharpness_aware"
"""The name of the method that is composed of parts."""

_LLM_FOUNDRY = {  # its names for Composer's schedulers
    "cosine": "CosineAnnealingScheduler",
    "cosine_with_warmup": "CosineAnnealingWithWarmupScheduler",
    "linear_decay_with_warmup": "LinearWithWarmupScheduler",
}


def algorithms() -> dict[str, Callable[..., Algorithm]]:
    """Every Composer algorithm by its metadata name, the sharpness-aware methods, and ``recalibrate_batch_norm``.

    Returns:
        dict[str, Callable]: ``sam`` is this package's SAM; Composer's class of that name is not offered.
            ``sharpness_aware`` is composed of parts: see `build_parts`.
    """
    found: dict[str, Callable[..., Algorithm]] = {}
    for folder in files(composer.algorithms).iterdir():
        card = folder / "metadata.json"
        if card.is_file():
            for name, facts in json.loads(card.read_text()).items():
                found[name] = getattr(composer.algorithms, facts["class_name"])
    return {**found, **METHODS, COMPOSED: SharpnessAware, "recalibrate_batch_norm": RecalibrateBatchNorm}


def optimizers() -> dict[str, Callable[..., torch.optim.Optimizer]]:
    """Composer's and torch's optimizers.

    Returns:
        dict[str, Callable]: By class name. Left out are L-BFGS, which re-evaluates the loss in its own step, and
            SparseAdam, whose sparse gradients no network of a recipe has.
    """
    found = _classes((torch.optim, composer.optim), torch.optim.Optimizer)
    return {name: found[name] for name in found if name not in ("Optimizer", "LBFGS", "SparseAdam")}


def schedulers() -> dict[str, Callable[..., Any]]:
    """Composer's and torch's learning rate schedules.

    Returns:
        dict[str, Callable]: By class name, and by llm-foundry's names. Left out are those that take functions or other
            schedules, which YAML has not, and ReduceLROnPlateau, which the Trainer does not tell its metric.
    """
    bases = ("LRScheduler", "ComposerScheduler")
    others = ("LambdaLR", "MultiplicativeLR", "ChainedScheduler", "SequentialLR", "ReduceLROnPlateau")
    ours = _classes((composer.optim,), ComposerScheduler)
    found = {**_classes((torch.optim.lr_scheduler,), LRScheduler), **ours}
    found.update({alias: ours[name] for alias, name in _LLM_FOUNDRY.items()})
    return {name: found[name] for name in found if name not in (*bases, *others)}


def callbacks() -> dict[str, Callable[..., Callback]]:
    """Composer's callbacks.

    Returns:
        dict[str, Callable]: By class name.
    """
    return _classes((composer.callbacks,), Callback)


def loggers() -> dict[str, Callable[..., LoggerDestination]]:
    """Composer's loggers.

    Returns:
        dict[str, Callable]: By class name.
    """
    found = _classes((composer.loggers,), LoggerDestination)
    return {name: found[name] for name in found if found[name] not in (Logger, LoggerDestination)}


def build_collection(key: str, table: Mapping[str, Callable[..., Any]], entries: Mapping[str, Any]) -> list[Any]:
    """Build what `algorithms`, `callbacks` or `loggers` lists.

    Args:
        key (str): Which of them.
        table (Mapping[str, Callable]): What its names stand for.
        entries (Mapping[str, Any]): The names in the recipe, with their arguments.

    Returns:
        list: One object an entry, in the recipe's order.

    Raises:
        RecipeError: For a wrong name or argument.
    """
    kind = key.removesuffix("s")
    return [
        construct(f"{key}.{name}", lookup(f"{key}.{name}", kind, name, table), arguments)
        for name, arguments in entries.items()
    ]


def build_algorithms(entries: Mapping[str, Any]) -> list[Algorithm]:
    """Build the algorithms of a recipe.

    Args:
        entries (Mapping[str, Any]): Names with their arguments.

    Returns:
        list[Algorithm]: In the recipe's order.

    Raises:
        RecipeError: For a wrong name or argument, and for two sharpness-aware methods.
    """
    table = algorithms()
    entries = {name: _with_parts(name, arguments, table) for name, arguments in entries.items()}
    built = build_collection("algorithms", table, entries)
    refuse_several_methods([name for name, made in zip(entries, built, strict=True) if isinstance(made, Method)])
    return built


def build_parts(where: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Build the parts among the arguments of a method, or of a part.

    Args:
        where (str): The key of the recipe that holds the arguments.
        factory (Callable): The class that takes them.
        arguments (Mapping[str, Any]): Where the class takes a part (a policy, a perturbation, a schedule for ``rho``,
            ...), its name and its own arguments; others are left as they are.

    Returns:
        dict[str, Any]: The arguments, with the parts built.

    Raises:
        RecipeError: For a wrong name or argument.

    Example:
        >>> build_parts("algorithms.sam", METHODS["sam"], {"rho": {"name": "linear", "start": 0.1}, "interval": 2})
        {'rho': Linear(start=0.1, end=0.0), 'interval': 2}
    """
    built = dict(arguments)
    for name, hint in typing.get_type_hints(factory).items() if inspect.isclass(factory) else ():
        options = typing.get_args(hint) or (hint,)
        kind = next((option for option in options if inspect.isclass(option) and issubclass(option, Part)), None)
        section, key = arguments.get(name), f"{where}.{name}"
        if kind is None or name not in arguments or not (isinstance(section, Mapping) or options == (kind,)):
            continue
        if not isinstance(section, Mapping) or not isinstance(section.get("name"), str):
            raise RecipeError(f"{key}.name", f"required: a part and its arguments, e.g. {key}={{name: ...}}")
        axis = kind.__name__.lower()
        part = lookup(f"{key}.name", axis, section["name"], PARTS[axis])
        built[name] = construct(key, part, build_parts(key, part, arguments_of(section)))
    return built


def build_optimizer(section: Mapping[str, Any], params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimizer of a recipe.

    Args:
        section (Mapping[str, Any]): Its name and arguments.
        params (Iterable[torch.nn.Parameter]): What it optimizes.

    Returns:
        torch.optim.Optimizer: The base optimizer.

    Raises:
        RecipeError: For a wrong name or argument.
    """
    factory = lookup("optimizer.name", "optimizer", section["name"], optimizers())
    return construct("optimizer", factory, arguments_of(section), params=params)


def build_scheduler(section: Mapping[str, Any] | None, optimizer: torch.optim.Optimizer) -> Any:
    """Build the learning rate schedule of a recipe.

    Args:
        section (Mapping[str, Any] | None): Its name and arguments.
        optimizer (torch.optim.Optimizer): torch's schedules are bound to it; Composer's are not.

    Returns:
        ComposerScheduler | LRScheduler | None: None where the recipe has none.

    Raises:
        RecipeError: For a wrong name or argument.
    """
    if section is None:
        return None
    factory = lookup("scheduler.name", "scheduler", section["name"], schedulers())
    supplied = {"optimizer": optimizer} if "optimizer" in inspect.signature(factory).parameters else {}
    return construct("scheduler", factory, arguments_of(section), **supplied)


def _with_parts(name: str, arguments: Any, table: Mapping[str, Callable[..., Any]]) -> Any:
    """The arguments of an algorithm, with the parts built that a sharpness-aware method takes."""
    factory = lookup(f"algorithms.{name}", "algorithm", name, table)
    is_method = inspect.isclass(factory) and issubclass(factory, Method)
    return build_parts(f"algorithms.{name}", factory, arguments) if is_method else arguments


def _classes(modules: Iterable[ModuleType], base: type) -> dict[str, Any]:
    """The public classes of `modules` that are `base`'s, by name."""
    found = {name: getattr(module, name) for module in modules for name in dir(module) if name[0] != "_"}
    if base is ComposerScheduler:  # a protocol: its classes need not inherit from it
        return {name: value for name, value in found.items() if name.endswith("Scheduler")}
    classes = {name: value for name, value in found.items() if inspect.isclass(value)}
    return {name: value for name, value in classes.items() if issubclass(value, base)}
