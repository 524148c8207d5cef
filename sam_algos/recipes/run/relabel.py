"""New labels for a training set: what the network that was trained on it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from composer import Callback, Evaluator, Logger, State
from composer.utils import dist

from sam_algos.recipes.data.datasets import build_dataset, build_loader, eval_section
from sam_algos.recipes.schema import Recipe

if TYPE_CHECKING:
    from sam_algos.recipes.run import Run


@dataclass(frozen=True)
class Relabelling:
    """The new labels of a training set.

    Args:
        labels (torch.Tensor): What the trained network predicts, one class per sample, shape ``(n,)``.
        changed (float): The fraction of labels that changed.
        correct (tuple[float, float], optional): The fractions of true labels before and after; None where the recipe
            does not say which are true.
    """

    labels: torch.Tensor
    changed: float
    correct: tuple[float, float] | None

    def __str__(self) -> str:
        """In one line."""
        changed = f"{100 * self.changed:.2f} % changed"
        if self.correct is None:
            return changed
        return f"{changed}; true ones from {100 * self.correct[0]:.2f} % to {100 * self.correct[1]:.2f} %"


def relabel(recipe: Recipe, run: Run) -> Relabelling:
    """Predict the labels of the samples that a run was trained on, without augmentation; on all processes the same."""
    true = build_dataset("train_dataset", eval_section(recipe.train_dataset), train=True, augment=False)
    loader: Any = run.trainer.state.train_dataloader
    before, predictions = loader.dataset.labels, _Predictions(len(true))
    numbered = replace(true, labels=torch.arange(len(true)))
    batches = build_loader(
        recipe, numbered, recipe.global_eval_batch_size or recipe.global_train_batch_size, train=False
    )
    run.trainer.state.callbacks.append(predictions)
    # Not predict(): around it EMA and the like do not swap in the weights that are evaluated.
    run.trainer.eval(Evaluator(label="training images", dataloader=batches, metric_names=[]))
    after = predictions.labels
    known = bool(recipe.train_dataset.get("label_noise"))
    correct = (_fraction(before == true.labels), _fraction(after == true.labels)) if known else None
    return Relabelling(after, _fraction(before != after), correct)


class _Predictions(Callback):
    """The predicted class of every sample; its label in the batch is its number."""

    def __init__(self, samples: int) -> None:
        self.labels = torch.full((samples,), -1)

    def eval_after_forward(self, state: State, logger: Logger) -> None:
        numbers = state.batch["labels"] if isinstance(state.batch, Mapping) else state.batch[1]
        self.labels[numbers.cpu()] = state.outputs.argmax(dim=1).cpu()  # type: ignore[union-attr]

    def eval_end(self, state: State, logger: Logger) -> None:
        if dist.get_world_size() > 1:  # each process has seen a part
            labels = state.device.tensor_to_device(self.labels)
            dist.all_reduce(labels, reduce_operation="MAX")
            self.labels = labels.cpu()


def _fraction(which: torch.Tensor) -> float:
    return which.float().mean().item()
