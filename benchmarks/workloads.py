"""The tasks that are trained while steps are timed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from benchmarks.networks import VisionTransformer, mlp, resnet, small_mlp

Batch = tuple[Tensor, Tensor]


@dataclass
class Task:
    """A classifier with its plain optimizer, endless batches and autocast's dtype; perhaps a Trainer and its folder."""

    network: nn.Module
    optimizer: Optimizer
    batches: Iterator[Batch]
    dtype: torch.dtype | None = None
    trainer: Any = None
    folder: TemporaryDirectory[str] | None = None

    def loss(self, model: nn.Module, batch: Batch, reduction: str = "mean") -> Tensor:
        """Cross-entropy on a batch; ``model`` is the network or a wrapper around it."""
        inputs, labels = batch
        with torch.autocast(inputs.device.type, self.dtype, enabled=self.dtype is not None):
            return functional.cross_entropy(model(inputs), labels, reduction=reduction)

    def close(self) -> None:
        """Close the Trainer and delete its folder."""
        if self.trainer is not None:
            self.trainer.close()
        if self.folder is not None:
            self.folder.cleanup()


@dataclass(frozen=True)
class Workload:
    """Builds a task for a mode. If ``essential``, steps are slow and only essential contenders are compared."""

    title: str
    make: Callable[[str], Task]
    essential: bool = False


@dataclass(frozen=True)
class _Size:
    """The number of images in a batch, and their height and width."""

    batch: int
    image: int

    def __str__(self) -> str:
        return f"{self.image}×{self.image} images, batch {self.batch}"


def _vit(image: int, classes: int, tiny: bool) -> nn.Module:
    return VisionTransformer(image=image, classes=classes, **({"width": 64, "depth": 2} if tiny else {}))


def _resnet(depths: Sequence[int], expansion: int = 1, width: int = 64) -> Callable[[int, int, bool], nn.Module]:
    return lambda image, classes, tiny: resnet(
        depths, classes=classes, small=image <= 64, expansion=expansion, width=4 if tiny else width
    )


IMAGES: dict[str, tuple[str, Callable[[int, int, bool], nn.Module], _Size, _Size]] = {
    "resnet18": ("ResNet-18", _resnet((2, 2, 2, 2)), _Size(64, 32), _Size(128, 224)),
    "resnet20": ("ResNet-20", _resnet((3, 3, 3), width=16), _Size(64, 32), _Size(512, 32)),
    "resnet50": ("ResNet-50", _resnet((3, 4, 6, 3), expansion=4), _Size(8, 96), _Size(64, 224)),
    "vit_s16": ("ViT-S/16", _vit, _Size(8, 128), _Size(64, 224)),
}
"""Networks on images: title, builder from image size and classes, sizes on a CPU and on a GPU."""

VECTORS: dict[str, tuple[str, Callable[[], nn.Module], tuple[int, int]]] = {
    "mlp": ("MLP, 6 M parameters, batch 128", lambda: mlp(), (128, 784)),
    "mnist1d": ("MNIST-1D's MLP, 40-100-100-10, batch 100", lambda: small_mlp(), (100, 40)),
}
"""Networks on vectors: title, builder, shape of a batch."""

NETWORKS = (*VECTORS, *IMAGES)


def synthetic(name: str, dtype: torch.dtype | None = None, *, tiny: bool = False) -> Workload:
    """A workload in which a network learns noise.

    Args:
        name: The network, one of `NETWORKS`.
        dtype: Autocast's dtype in a hand-written loop.
        tiny: Use a small network of the same kind, on two images.
    """
    classes = 10
    if name in VECTORS:
        title, build, shape = VECTORS[name]
    else:
        label, builder, *sizes = IMAGES[name]
        size = _Size(2, 32) if tiny else sizes[torch.cuda.is_available()]
        classes = 1000 if size.image >= 224 else 10
        shape, title = (size.batch, 3, size.image, size.image), f"{label}, {size}"
        build = partial(builder, size.image, classes, tiny)
    suffix = f", {str(dtype).removeprefix('torch.')}" if dtype else ""
    return Workload(title + suffix, lambda mode: _noise(build(), shape, classes, dtype, mode), essential=name != "mlp")


def _noise(network: nn.Module, shape: Sequence[int], classes: int, dtype: torch.dtype | None, mode: str) -> Task:
    """A task of eight batches of noise, with a learning rate at which the weights hardly move."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(shape, generator=generator), torch.randint(classes, tuple(shape[:1]), generator=generator))
        for _ in range(8)
    ]
    batches = [(inputs.to(device), labels.to(device)) for inputs, labels in batches]
    network.to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    task = Task(network, optimizer, itertools.cycle(batches), dtype)
    if mode == "trainer":
        from benchmarks.trainer import trainer_of

        task.trainer = trainer_of(task, batches, classes)
    return task


def workloads(names: Sequence[str], recipe: Path, overrides: Sequence[str]) -> dict[str, Workload]:
    """The workloads with the given names: ``recipe`` and the names in `NETWORKS`."""
    found: dict[str, Workload] = {}
    for name in names:
        if name == "recipe":
            from benchmarks.trainer import from_recipe, plain_recipe

            plain = plain_recipe(recipe, overrides)
            title = f"{plain.model['name']} on {plain.train_dataset['name']}, batch {plain.global_train_batch_size}"
            found[name] = Workload(title, lambda _, plain=plain: from_recipe(plain))
        else:
            found[name] = synthetic(name)
    return found
