"""Bootstrap: train, give the training set the labels that the trained network predicts, and train anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from composer import Callback, Evaluator, Logger, State
from composer.utils import dist

from sam_algos.recipes.check import check_names
from sam_algos.recipes.datasets import build_dataset, eval_section, has_classes
from sam_algos.recipes.errors import RecipeError
from sam_algos.recipes.loaders import build_loader
from sam_algos.recipes.noise import Samples
from sam_algos.recipes.run import Run, prepare
from sam_algos.recipes.schema import Recipe

_APART = 1_000_003  # between the seeds of two trainings: no other run's seed, as people choose them


@dataclass(frozen=True)
class Relabelling:
    """What the labels of the training set were replaced by.

    Args:
        labels (torch.Tensor): What the trained network predicts, one class per sample, shape ``(n,)``.
        changed (float): The share of them that differs from the labels before.
        correct (tuple[float, float], optional): The shares of true labels before and after, None where the recipe does
            not say which are true.
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


def trainings(recipe: Recipe, name: str) -> Iterator[Run]:
    """Prepare the trainings of a recipe: one, and one more for each round of ``bootstrap``.

    Each starts from an initialisation of its own (`Foret et al., 2021 <https://arxiv.org/abs/2010.01412>`_, section
    3.3), and all but the first with the labels that the one before predicts on the training samples: without
    augmentation, and at the weights that are evaluated. With autoresume each goes on from its latest checkpoint, and
    those that were complete are only asked for their labels again.

    **Cost.** ``bootstrap + 1`` trainings, and after all but the last a forward pass over the training samples.

    Args:
        recipe (Recipe): A resolved recipe.
        name (str): What a run without a ``run_name`` is called, before the time.

    Yields:
        Run: To be trained before the next is asked for; the last one knows all the relabellings. With bootstrap the
        files of training ``i`` lie in the folder ``training-<i>``; its recipe is that of the trainings up to it.

    Raises:
        RecipeError: For whatever is wrong with the recipe; before the first training nothing was created then.
    """
    if not recipe.bootstrap:
        yield (run := prepare(recipe, name))
        run.trainer.close()
        return
    check_names(recipe)
    if not has_classes(recipe.train_dataset):
        raise RecipeError("bootstrap", f"must be 0 where text has no classes, got {recipe.bootstrap}")
    done: tuple[Relabelling, ...] = ()
    for number in range(recipe.bootstrap + 1):
        last = number == recipe.bootstrap
        labels, written = done[-1].labels if done else None, replace(recipe, bootstrap=number)
        run = prepare(_training(recipe, number), name, labels, written)
        run, recipe = replace(run, relabellings=done), replace(recipe, run_name=run.trainer.state.run_name)
        if last or not run.complete:
            yield run
        if not last:
            done = (*done, relabel(recipe, run))
        run.trainer.close()


def relabel(recipe: Recipe, run: Run) -> Relabelling:
    """Ask a trained network for the labels of the samples that it was trained on.

    Args:
        recipe (Recipe): That of the run.
        run (Run): After training.

    Returns:
        Relabelling: On all processes the same.
    """
    true = build_dataset("train_dataset", eval_section(recipe.train_dataset), train=True, augment=False)
    before, after = _labels(run), _predictions(recipe, run, true)
    known = bool(recipe.train_dataset.get("label_noise"))
    correct = (_share(before == true.labels), _share(after == true.labels)) if known else None
    return Relabelling(after, _share(before != after), correct)


def _training(recipe: Recipe, number: int) -> Recipe:
    """The recipe of one training, with a seed and folders of its own."""
    folders = {"run_folder": recipe.run_folder, "save_folder": recipe.save_folder}
    own = {key: folder and f"{folder}/training-{number}" for key, folder in folders.items()}
    return replace(recipe, bootstrap=0, seed=(recipe.seed + number * _APART) % 2**32, **own)


def _labels(run: Run) -> torch.Tensor:
    loader: Any = run.trainer.state.train_dataloader
    return loader.dataset.labels


def _predictions(recipe: Recipe, run: Run, samples: Samples) -> torch.Tensor:
    numbered = replace(samples, labels=torch.arange(len(samples)))
    predictions = _Predictions(len(samples))
    size = recipe.global_eval_batch_size or recipe.global_train_batch_size
    loader = build_loader(recipe, numbered, size, train=False)
    run.trainer.state.callbacks.append(predictions)
    # Not predict(), around which EMA and the like do not put the weights in place that are evaluated.
    run.trainer.eval(Evaluator(label="training images", dataloader=loader, metric_names=[]))
    return predictions.labels


class _Predictions(Callback):
    """The predicted class of every sample, by the number that stands in its label's place."""

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


def _share(which: torch.Tensor) -> float:
    return which.float().mean().item()
