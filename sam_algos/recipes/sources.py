"""The options that every data set has, put around the functions that load one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, Literal, get_type_hints

from sam_algos.core.options import UnitInterval
from sam_algos.recipes.data.samples import Part, divide, flip_labels
from sam_algos.recipes.errors import BadArgument

Loader = Callable[..., Any]
"""A function of a data set's options that gives labelled images, labelled texts, or blocks of text."""

DATASETS: dict[str, Loader] = {}
"""The data sets by name: functions of ``train`` and of the options in the recipe."""


def of_size(samples: int) -> Callable[[Loader], Loader]:
    """Say how many training samples a data set has, which is then known before it is opened.

    Args:
        samples (int): Before any are set aside.

    Returns:
        Callable: A decorator, to stand below the others.
    """

    def mark(loader: Loader) -> Loader:
        loader.samples = samples  # type: ignore[attr-defined]
        return loader

    return mark


def dataset(loader: Loader) -> Loader:
    """Put `loader`, a function of the part, into `DATASETS`, with the options that every data set has."""

    def load(
        *, train: bool, augment: bool = True, label_noise: UnitInterval = 0.0, noise_seed: int = 0,
        evaluate: Literal["test", "validation"] = "test",
        **options: Any,
    ) -> Any:  # fmt: skip
        data = loader(part="train" if train else evaluate, augment=train and augment, **options)
        if label_noise and not train:
            raise BadArgument("label_noise", "is for training data: test labels are clean")
        return flip_labels(data, label_noise, noise_seed)

    _offer(load, loader, without="part")
    DATASETS[loader.__name__] = load
    return load


def with_own_test_set(loader: Loader) -> Loader:
    """Make a function of the part from one of ``train``, the published half."""

    def load(
        *, part: Part, augment: bool, train_subset: int | None = None, validation: int = 0, split_seed: int = 0,
        **options: Any,
    ) -> Any:  # fmt: skip
        if part == "test":
            return loader(train=False, augment=False, **options)
        pool = loader(train=True, augment=augment, **options)
        chosen, aside = divide(pool.labels, validation=validation, train=train_subset, seed=split_seed)
        if part == "validation" and not aside:
            raise BadArgument("evaluate", "there are no validation samples; set some aside with validation, e.g. 2000")
        return pool.among(chosen if part == "train" else aside)

    _offer(load, loader, without="train")
    return load


def _offer(load: Loader, loader: Loader, without: str) -> None:
    """Let `load` look like `loader`: what users may set is read from the signature, which names the options of both."""
    options = {**inspect.signature(loader).parameters, **inspect.signature(load).parameters}
    for hidden in ("options", without):
        del options[hidden]
    # Now: names in annotations are those of the module that they stand in.
    hints = {**get_type_hints(load, include_extras=True), **get_type_hints(loader, include_extras=True)}
    update_wrapper(load, loader)
    load.__signature__ = inspect.Signature(list(options.values()))  # type: ignore[attr-defined]
    load.__annotations__ = hints
