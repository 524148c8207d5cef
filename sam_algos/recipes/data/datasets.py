"""The data of a recipe, and its batches on this process. Nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from composer.core import DataSpec
from composer.utils import dist
from torch.utils.data import DataLoader

from sam_algos.recipes.data import images, texts  # they put their data sets into DATASETS
from sam_algos.recipes.data.samples import LabelledImages
from sam_algos.recipes.data.sources import DATASETS
from sam_algos.recipes.data.texts import LabelledTexts
from sam_algos.recipes.errors import RecipeError
from sam_algos.recipes.naming.names import arguments_of, construct, lookup
from sam_algos.recipes.schema import Recipe

__all__ = ["DATASETS", "Samples", "build_dataset", "build_loader", "eval_section", "images", "load_data", "texts"]

Samples = LabelledImages | LabelledTexts
"""What a data set of a recipe is."""


def load_data(recipe: Recipe) -> tuple[Samples, Samples]:
    """Open the data of a recipe: the training samples, and the evaluation samples.

    Raises:
        RecipeError: If the files are not there, or the two differ in kind, classes or vocabulary.
    """
    train = build_dataset("train_dataset", recipe.train_dataset, train=True)
    test = build_dataset("eval_dataset", recipe.eval_dataset or eval_section(recipe.train_dataset), train=False)
    check_alike(train, test)
    size = recipe.global_train_batch_size
    if size > len(train):
        raise RecipeError("global_train_batch_size", f"{size} is more than the {len(train)} training samples")
    return train, test


def build_dataset(where: str, section: Mapping[str, Any], *, train: bool, augment: bool = True) -> Samples:
    """Load the data that a section of a recipe names.

    Args:
        where (str): The section, ``train_dataset`` or ``eval_dataset``.
        section (Mapping[str, Any]): The name, the data set's options, and for training ``label_noise``
            (see `flip_labels`) with its own ``noise_seed``; ``evaluate`` says which samples the recipe evaluates on,
            ``test`` or ``validation``; where the test set is published, ``split_seed`` draws the ``validation`` and
            ``train_subset`` samples from the training set (see `divide`).
        train (bool): True for the training split with its augmentation, False for the test split without.
        augment (bool, optional): False for the training split without its augmentation. Default: ``True``.

    Returns:
        Samples: Images, texts with classes, or blocks of text.

    Raises:
        RecipeError: For a wrong name or option, and if the files are not there.
    """
    loader = lookup(f"{where}.name", "dataset", section["name"], DATASETS)
    return construct(where, loader, arguments_of(section), train=train, augment=augment)


def eval_section(train_section: Mapping[str, Any]) -> dict[str, Any]:
    """The ``train_dataset`` of a recipe as the section that evaluates on its clean test split."""
    return {key: value for key, value in train_section.items() if key not in ("label_noise", "noise_seed")}


def check_alike(train: Samples, test: Samples) -> None:
    """Refuse to evaluate on another kind of data, with other classes or another vocabulary, than is trained on."""
    if type(train) is not type(test):
        raise RecipeError("eval_dataset", f"{type(test).__name__}, but train_dataset is {type(train).__name__}")
    if train.num_classes != test.num_classes:
        raise RecipeError("eval_dataset", f"{test.num_classes} classes, but train_dataset has {train.num_classes}")
    sizes = [len(data.tokenizer) for data in (test, train) if isinstance(data, LabelledTexts)]
    if len(set(sizes)) > 1:
        raise RecipeError("eval_dataset", f"a vocabulary of {sizes[0]} tokens, but train_dataset has {sizes[1]}")


def build_loader(recipe: Recipe, data: Samples, batch_size: int, *, train: bool) -> DataSpec:
    """The batches of this process: shuffled and all of one size to train on."""
    world = dist.get_world_size()
    if batch_size % world:
        key = f"global_{'train' if train else 'eval'}_batch_size"
        raise RecipeError(key, f"{batch_size} does not divide by the {world} processes")
    sampler = dist.get_sampler(data, shuffle=train, drop_last=train, seed=recipe.seed)
    loader = construct(
        "dataloader", DataLoader, recipe.dataloader,
        dataset=data, batch_size=batch_size // world, sampler=sampler, drop_last=train, collate_fn=data.collate,
    )  # fmt: skip
    return DataSpec(loader, split_batch=_split)


def _split(batch: Any, size: int | float) -> list[Any]:
    """Composer's own function, without its warning that the last batch is smaller than the others."""
    tensors = batch.values() if isinstance(batch, Mapping) else batch
    parts = list(zip(*(tensor.split(int(size)) for tensor in tensors), strict=True))
    return [dict(zip(batch, part, strict=True)) for part in parts] if isinstance(batch, Mapping) else parts
