"""What is trained while it is timed, and whose tensors are moved."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from composer import Callback, State, Trainer
from composer.models import ComposerClassifier
from torch import Tensor, nn

from benchmarks.results import BenchmarkError
from sam_algos import METHODS
from sam_algos.recipes import Recipe, RecipeError, load_recipe
from sam_algos.recipes.models import models, resnet18_cifar, vit_s16
from sam_algos.recipes.run import Run, prepare

_ENDLESS = "1000000000ba"

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Workload:
    """Something to train.

    Args:
        title: What the tables call it.
        make: Builds it with a plain optimizer, in a Trainer that trains until it is stopped.
        essential: Whether a step takes so long that only the essential contenders are compared.
    """

    title: str
    make: Callable[[], Trainer]
    essential: bool = False


def workloads(names: Sequence[str], recipe: Path | None, overrides: Sequence[str]) -> dict[str, Workload]:
    """The workloads that were asked for.

    Args:
        names: ``recipe``, ``mlp``, ``resnet18``, ``resnet20`` and ``vit_s16``.
        recipe: The recipe's file.
        overrides: Changes to the recipe.

    Returns:
        dict[str, Workload]: By name.

    Raises:
        BenchmarkError: If something is wrong with the recipe.
    """
    found = {
        "mlp": Workload("MLP, 6 M parameters, batch 128", lambda: _synthetic(_mlp(), (128, 784))),
        "resnet18": Workload(
            "ResNet-18, 32×32 images, batch 64",
            lambda: _synthetic(resnet18_cifar(num_classes=10, in_channels=3), (64, 3, 32, 32)),
            essential=True,
        ),
        "resnet20": Workload(
            "ResNet-20, 32×32 images, batch 64",
            lambda: _synthetic(_resnet20(), (64, 3, 32, 32)),
            essential=True,
        ),
        "vit_s16": Workload(
            "ViT-S/16, 128×128 images, batch 8",
            lambda: _synthetic(vit_s16(num_classes=10, image_size=128), (8, 3, 128, 128)),
            essential=True,
        ),
    }
    if "recipe" in names and recipe is not None:
        plain = plain_recipe(recipe, overrides)
        title = f"{plain.model['name']} on {plain.train_dataset['name']}, batch {plain.global_train_batch_size}"
        found["recipe"] = Workload(title, lambda: _from_recipe(plain))
    return {name: found[name] for name in names}


def plain_recipe(path: Path, overrides: Sequence[str]) -> Recipe:
    """A recipe without its sharpness-aware method.

    Raises:
        BenchmarkError: If something is wrong with it.
    """
    try:
        recipe = load_recipe(path, overrides)
    except RecipeError as error:
        raise BenchmarkError(str(error)) from error
    others = {name: options for name, options in recipe.algorithms.items() if name not in METHODS}
    return replace(recipe, algorithms=others)


def build(recipe: Recipe, folder: str) -> Run:
    """Build a recipe's run with its files in a folder, and no checkpoints.

    Raises:
        BenchmarkError: If something is wrong with the recipe.
    """
    try:
        quiet = replace(recipe, run_folder=f"{folder}/run", save_folder=None, progress_bar=False)
        return prepare(quiet, "benchmark")
    except RecipeError as error:
        raise BenchmarkError(str(error)) from error


def _from_recipe(recipe: Recipe) -> Trainer:
    folder = tempfile.TemporaryDirectory()
    endless = replace(recipe, max_duration=_ENDLESS, scheduler=None, eval_interval=_ENDLESS)
    trainer = build(endless, folder.name).trainer
    trainer.state.evaluators = []
    trainer.state.callbacks.append(_Cleanup(folder))
    return trainer


class _Cleanup(Callback):
    """Removes a folder when the Trainer is closed."""

    def __init__(self, folder: tempfile.TemporaryDirectory[str]) -> None:
        self._folder = folder

    def post_close(self) -> None:
        self._folder.cleanup()


def _synthetic(network: nn.Module, shape: tuple[int, ...]) -> Trainer:
    """Eight batches of noise, with a rate at which the weights hardly move."""
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(shape, generator=generator), torch.randint(10, shape[:1], generator=generator)) for _ in range(8)
    ]
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    return Trainer(
        model=ComposerClassifier(network, num_classes=10), optimizers=optimizer, train_dataloader=batches,
        max_duration=_ENDLESS, progress_bar=False, device_train_microbatch_size=shape[0],
    )  # fmt: skip


def _mlp() -> nn.Module:
    width = 2048
    return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def _resnet20() -> nn.Module:
    return models()["resnet20"](num_classes=10, in_channels=3)


def batches_of(state: State) -> Iterator[Any]:
    """The batches of a Trainer, for a bare loop; without end."""
    for _ in itertools.count():
        for batch in state.train_dataloader:  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
            yield state.device.batch_to_device(batch)


TENSORS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "resnet50": ("Optimizer side on the tensors of ResNet-50", lambda: torchvision.models.resnet50(weights=None)),
    "vit_s16": ("Optimizer side on the tensors of ViT-S/16", lambda: vit_s16(num_classes=1000)),
    "tiny": ("Optimizer side on 500 tensors of 64 elements", lambda: _Tensors(500, 64)),
}
"""Models of which only the tensors matter."""


class _Tensors(nn.Module):
    def __init__(self, count: int, elements: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(elements)) for _ in range(count))
