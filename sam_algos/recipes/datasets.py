"""The data sets that a recipe can name, with the papers' transforms. Nothing is ever downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import update_wrapper
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import ConcatDataset
from torchvision import datasets as tv
from torchvision import transforms as tf

from sam_algos.recipes.names import construct, lookup
from sam_algos.recipes.noise import LabelledImages, flip_labels, labelled

Loader = Callable[..., LabelledImages]

DATASETS: dict[str, Loader] = {}
"""The data sets by name: functions of ``train`` and of the options in the recipe."""


def build_dataset(where: str, section: Mapping[str, Any], *, train: bool) -> LabelledImages:
    """Load the data that a section of a recipe names.

    Args:
        where (str): The section, ``train_dataset`` or ``eval_dataset``.
        section (Mapping[str, Any]): The name, the data set's options, and for training ``label_noise``
            (see `flip_labels`) with its own ``noise_seed``.
        train (bool): The training split with its augmentation, or the test split without.

    Returns:
        LabelledImages: With the number of classes.

    Raises:
        RecipeError: For a wrong name or option, and if the files are not there.
    """
    loader = lookup(f"{where}.name", "dataset", section["name"], DATASETS)
    return construct(where, loader, section, train=train)


def eval_section(train_section: Mapping[str, Any]) -> dict[str, Any]:
    """The section that evaluates on the clean test split of what a recipe trains on.

    Args:
        train_section (Mapping[str, Any]): The recipe's ``train_dataset``.

    Returns:
        dict[str, Any]: The same without label noise.
    """
    return {key: value for key, value in train_section.items() if key not in ("label_noise", "noise_seed")}


def _dataset(loader: Loader) -> Loader:
    """Put `loader` into `DATASETS`, with the options that every data set has."""

    def load(*, train: bool, label_noise: float = 0.0, noise_seed: int = 0, **options: Any) -> LabelledImages:
        data = loader(train=train, **options)
        if label_noise and not train:
            raise ValueError("label_noise is for training data: test labels are clean")
        return flip_labels(data, label_noise, noise_seed)

    options = {**inspect.signature(loader).parameters, **inspect.signature(load).parameters}
    del options["options"]
    hints = {**load.__annotations__, **loader.__annotations__}
    update_wrapper(load, loader)
    # What users may set is read from the signature: it has to name the options of both.
    load.__signature__ = inspect.Signature(list(options.values()))  # type: ignore[attr-defined]
    load.__annotations__ = hints
    DATASETS[loader.__name__] = load
    return load


@_dataset
def digits(*, train: bool) -> LabelledImages:
    """scikit-learn's 1797 handwritten digits of 8x8 pixels, from the installed package.

    The split (1437 for training, 360 for testing, stratified) is the same in every run.
    """
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).div(8).sub(1).reshape(-1, 1, 8, 8)
    parts = train_test_split(range(len(labels)), test_size=360, stratify=labels, random_state=0)
    chosen = parts[0 if train else 1]
    return labelled([(image,) for image in images[chosen]], torch.as_tensor(labels)[chosen], num_classes=10)


@_dataset
def cifar10(*, train: bool, path: str, augmentation: str = "basic") -> LabelledImages:
    """CIFAR-10 from ``path/cifar-10-batches-py``."""
    transform = _small_images(train, augmentation, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    data = _read(tv.CIFAR10, path, train=train, transform=transform)
    return labelled(data, data.targets, num_classes=10)


@_dataset
def cifar100(*, train: bool, path: str, augmentation: str = "basic") -> LabelledImages:
    """CIFAR-100 from ``path/cifar-100-python``."""
    transform = _small_images(train, augmentation, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    data = _read(tv.CIFAR100, path, train=train, transform=transform)
    return labelled(data, data.targets, num_classes=100)


@_dataset
def svhn(*, train: bool, path: str, augmentation: str = "basic", extra: bool = False) -> LabelledImages:
    """SVHN from ``path/{train,extra,test}_32x32.mat``; with `extra`, trained on both, as in the SAM paper.

    Digits are not mirrored: ``basic`` is the crop alone.
    """
    transform = _small_images(
        train, augmentation, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), policy="SVHN", flip=False
    )
    names = (["train", "extra"] if extra else ["train"]) if train else ["test"]
    parts = [_read(tv.SVHN, path, split=name, transform=transform) for name in names]
    labels = torch.cat([torch.as_tensor(part.labels) for part in parts])
    return labelled(ConcatDataset(parts), labels, num_classes=10)


@_dataset
def fashion_mnist(*, train: bool, path: str, augmentation: str = "basic", rgb: bool = False) -> LabelledImages:
    """Fashion-MNIST from ``path/FashionMNIST/raw``; `rgb` repeats the one channel for networks of three."""
    first = [tf.Grayscale(3)] if rgb else []
    transform = _small_images(train, augmentation, (0.2860,), (0.3530,), size=28, first=first)
    data = _read(tv.FashionMNIST, path, train=train, transform=transform)
    return labelled(data, data.targets, num_classes=10)


@_dataset
def imagefolder(
    *, train: bool, path: str, image_size: int = 224, resize: int = 256, train_folder: str = "train",
    eval_folder: str = "val",
) -> LabelledImages:  # fmt: skip
    """Any images as ``path/train/<class>/*`` and ``path/val/<class>/*``, with ImageNet's transforms."""
    training = [tf.RandomResizedCrop(image_size), tf.RandomHorizontalFlip()]
    testing = [tf.Resize(resize), tf.CenterCrop(image_size)]
    normalize = tf.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    transform = tf.Compose([*(training if train else testing), tf.ToTensor(), normalize])
    folder = Path(path) / (train_folder if train else eval_folder)
    data = _read(tv.ImageFolder, str(folder), transform=transform)
    return labelled(data, data.targets, num_classes=len(data.classes))


def _read(dataset: Callable[..., Any], path: str, **options: Any) -> Any:
    if not Path(path).expanduser().is_dir():
        raise ValueError(f"path: no folder {path!r}; put the data there, nothing is downloaded")
    try:
        return dataset(str(Path(path).expanduser()), **options)
    except (RuntimeError, OSError) as error:
        hint = str(error).replace(" You can use download=True to download it", "")
        raise ValueError(f"path: {path!r} does not hold the data: {hint}") from error


def _small_images(
    train: bool, augmentation: str, mean: tuple[float, ...], std: tuple[float, ...], *, size: int = 32,
    policy: str = "CIFAR10", flip: bool = True, first: list[Any] | None = None,
) -> tf.Compose:  # fmt: skip
    """The transform of the SAM paper's table 1, whose columns are the augmentations."""
    if augmentation not in _AUGMENTATIONS:
        raise ValueError(f"augmentation {augmentation!r} must be one of {', '.join(_AUGMENTATIONS)}")
    steps: list[Any] = list(first or [])
    if train and augmentation != "none":
        steps += [tf.RandomCrop(size, padding=4), *([tf.RandomHorizontalFlip()] if flip else [])]
    if train and augmentation == "autoaugment":
        steps.append(tf.AutoAugment(tf.AutoAugmentPolicy[policy]))
    steps += [tf.ToTensor(), tf.Normalize(mean, std)]
    if train and augmentation in ("cutout", "autoaugment"):
        steps.append(_Cutout(size // 2))
    return tf.Compose(steps)


_AUGMENTATIONS = ("none", "basic", "cutout", "autoaugment")


class _Cutout:
    """Zero a square around a random pixel of a normalised image (DeVries & Taylor, 2017)."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        spans = []
        for size in image.shape[-2:]:
            start = int(torch.randint(size, ())) - self.length // 2
            spans.append(slice(max(start, 0), max(start + self.length, 0)))
        image = image.clone()
        image[(..., *spans)] = 0.0
        return image
