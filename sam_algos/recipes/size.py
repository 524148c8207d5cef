"""How large a training is, found out without beginning it."""

from __future__ import annotations

from dataclasses import dataclass

from composer import Time
from composer.core import TimeUnit

from sam_algos.recipes.loaders import load_data
from sam_algos.recipes.models import build_model_for
from sam_algos.recipes.schema import Recipe


@dataclass(frozen=True)
class Size:
    """The size of a training.

    Args:
        parameters (int): Of the network.
        train_samples (int): Samples in an epoch.
        eval_samples (int): Samples in an evaluation.
        steps_per_epoch (int): Whole batches in an epoch.
        steps (int | None): In all; None where the duration is in another unit than epochs, batches or samples.
    """

    parameters: int
    train_samples: int
    eval_samples: int
    steps_per_epoch: int
    steps: int | None


def size_of(recipe: Recipe) -> Size:
    """Build the network and open the data of a recipe, and count.

    Args:
        recipe (Recipe): Resolved, and its names checked.

    Returns:
        Size: Of its training.

    Raises:
        RecipeError: If the data is not there, or the network does not take it.
    """
    train, test = load_data(recipe)
    model = build_model_for(recipe.model, train)
    per_epoch = len(train) // recipe.global_train_batch_size
    duration = Time.from_input(recipe.max_duration, TimeUnit.EPOCH)
    steps = {
        TimeUnit.EPOCH: duration.value * per_epoch,
        TimeUnit.BATCH: duration.value,
        TimeUnit.SAMPLE: -(-duration.value // recipe.global_train_batch_size),
    }
    parameters = sum(p.numel() for p in model.parameters())
    return Size(parameters, len(train), len(test), per_epoch, steps.get(duration.unit))
