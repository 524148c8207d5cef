"""The data of a recipe, and its batches on this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from composer.core import DataSpec
from composer.utils import dist
from torch.utils.data import DataLoader

from sam_algos.recipes.datasets import build_dataset, check_alike, eval_section
from sam_algos.recipes.errors import RecipeError
from sam_algos.recipes.names import construct
from sam_algos.recipes.noise import Samples
from sam_algos.recipes.schema import Recipe


def load_data(recipe: Recipe) -> tuple[Samples, Samples]:
    """Open the data of a recipe.

    Args:
        recipe (Recipe): A resolved recipe.

    Returns:
        tuple: What is trained on, and what is evaluated on.

    Raises:
        RecipeError: If it is not there, or does not go together.
    """
    train = build_dataset("train_dataset", recipe.train_dataset, train=True)
    test = build_dataset("eval_dataset", recipe.eval_dataset or eval_section(recipe.train_dataset), train=False)
    check_alike(train, test)
    size = recipe.global_train_batch_size
    if size > len(train):
        raise RecipeError("global_train_batch_size", f"{size} is more than the {len(train)} training samples")
    return train, test


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
    """Composer's own function, but for its warning about a last batch that is smaller than the others."""
    tensors = batch.values() if isinstance(batch, Mapping) else batch
    parts = list(zip(*(tensor.split(int(size)) for tensor in tensors), strict=True))
    return [dict(zip(batch, part, strict=True)) for part in parts] if isinstance(batch, Mapping) else parts
