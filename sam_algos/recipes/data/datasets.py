"""The data that a recipe names: images, text with classes, and text to predict. Nothing is ever downloaded."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from sam_algos.recipes import corpora, images  # which put their data sets into DATASETS
from sam_algos.recipes.errors import RecipeError
from sam_algos.recipes.names import arguments_of, construct, lookup
from sam_algos.recipes.noise import LabelledImages, Samples
from sam_algos.recipes.sources import DATASETS
from sam_algos.recipes.texts import TextBlocks

__all__ = ["DATASETS", "build_dataset", "check_alike", "corpora", "eval_section", "has_classes", "images"]


def build_dataset(where: str, section: Mapping[str, Any], *, train: bool, augment: bool = True) -> Samples:
    """Load the data that a section of a recipe names.

    Args:
        where (str): The section, ``train_dataset`` or ``eval_dataset``.
        section (Mapping[str, Any]): The name, the data set's options, and for training ``label_noise``
            (see `flip_labels`) with its own ``noise_seed``; ``evaluate`` says which samples the recipe evaluates on,
            ``test`` or ``validation``; where the test set is published, ``validation`` samples are set aside and
            ``train_subset`` drawn from the training set by ``split_seed`` (see `divide`).
        train (bool): The training split with its augmentation, or the test split without.
        augment (bool, optional): False for the training split without its augmentation, too. Default: ``True``.

    Returns:
        Samples: Images, texts with classes, or blocks of text.

    Raises:
        RecipeError: For a wrong name or option, and if the files are not there.
    """
    loader = lookup(f"{where}.name", "dataset", section["name"], DATASETS)
    return construct(where, loader, arguments_of(section), train=train, augment=augment)


def eval_section(train_section: Mapping[str, Any]) -> dict[str, Any]:
    """The section that evaluates on the clean test split of what a recipe trains on.

    Args:
        train_section (Mapping[str, Any]): The recipe's ``train_dataset``.

    Returns:
        dict[str, Any]: The same without label noise.
    """
    return {key: value for key, value in train_section.items() if key not in ("label_noise", "noise_seed")}


def has_classes(section: Mapping[str, Any]) -> bool:
    """Whether a section names data with classes.

    Args:
        section (Mapping[str, Any]): As for `build_dataset`.

    Returns:
        bool: False for text whose next token is predicted.

    Raises:
        RecipeError: For a wrong name.
    """
    loader = lookup("train_dataset.name", "dataset", section["name"], DATASETS)
    return typing.get_type_hints(loader)["return"] is not TextBlocks


def check_alike(train: Samples, test: Any) -> None:
    """See that what is evaluated on is of the kind that is trained on.

    Args:
        train (Samples): What is trained on.
        test (Samples): What is evaluated on.

    Raises:
        RecipeError: If it is another kind of data, has other classes, or another vocabulary.
    """
    if type(train) is not type(test):
        raise RecipeError("eval_dataset", f"{type(test).__name__}, but train_dataset is {type(train).__name__}")
    if train.num_classes != test.num_classes:
        raise RecipeError("eval_dataset", f"{test.num_classes} classes, but train_dataset has {train.num_classes}")
    if not isinstance(train, LabelledImages) and train.vocabulary.size != test.vocabulary.size:
        sizes = f"{test.vocabulary.size} tokens, but that of train_dataset {train.vocabulary.size}"
        raise RecipeError("eval_dataset", f"its vocabulary has {sizes}")
