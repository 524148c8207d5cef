"""The data sets of images, with the papers' transforms. Nothing is ever downloaded."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import ConcatDataset, TensorDataset
from torchvision import datasets as tv
from torchvision import transforms as tf

from sam_algos.recipes.cache import cached
from sam_algos.recipes.data.samples import LabelledImages, Part, divide
from sam_algos.recipes.data.sources import dataset
from sam_algos.recipes.data.transforms import IMAGENET, DecodedOnce, Small, ToFloat, centred, small_images
from sam_algos.recipes.errors import BadArgument
from sam_algos.recipes.naming.arguments import Folder


@dataset(samples=1077)
def digits(*, part: Part, augment: bool, split_seed: int = 0) -> LabelledImages:
    """scikit-learn's 1797 handwritten digits of 8x8 pixels, from the installed package; never augmented.

    360 of them are for validation, the same in every run. Of the others `split_seed` draws 360 to test on and 1077 to
    train on, so that an interval over seeds covers the split, and no choice was ever made on a test image.
    """
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).div(16).reshape(-1, 1, 8, 8)
    transform = tf.Compose([ToFloat(), centred])
    data = LabelledImages(TensorDataset(images), torch.as_tensor(labels), num_classes=10, transform=transform)
    others, validation = divide(data.labels, validation=360, train=None, seed=0)
    rest = data.among(others)
    train, test = divide(rest.labels, validation=360, train=None, seed=split_seed)
    return data.among(validation) if part == "validation" else rest.among(train if part == "train" else test)


@dataset(samples=4000)
def mnist1d(*, part: Part, augment: bool) -> LabelledImages:
    """MNIST-1D, ten digits as noisy signals of 40 points, generated on first use and never augmented.

    The benchmark of `Greydanus and Kobak, 2024 <https://arxiv.org/abs/2011.14439>`_, with a larger test set: of 18,000
    signals the first 4,000 are to train on, as in the paper, the next 4,000 are for validation, and the last 10,000 are
    to test on. The split is the same in every run. A signal has shape ``(1, 40)``.
    """
    signals, labels = _mnist1d()
    chosen = {"train": slice(0, 4000), "validation": slice(4000, 8000), "test": slice(8000, 18_000)}[part]
    return LabelledImages(TensorDataset(signals[chosen]), labels[chosen], num_classes=10)


@dataset(samples=50_000, own_test_set=True)
def cifar10(*, train: bool, augment: bool, path: Folder, augmentation: Small = "basic") -> LabelledImages:
    """CIFAR-10 from ``path/cifar-10-batches-py``."""
    transform = small_images(augment, augmentation, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    data = _read(tv.CIFAR10, path, train=train)
    return LabelledImages(data, data.targets, num_classes=10, transform=transform)


@dataset(samples=50_000, own_test_set=True)
def cifar100(*, train: bool, augment: bool, path: Folder, augmentation: Small = "basic") -> LabelledImages:
    """CIFAR-100 from ``path/cifar-100-python``."""
    transform = small_images(augment, augmentation, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    data = _read(tv.CIFAR100, path, train=train)
    return LabelledImages(data, data.targets, num_classes=100, transform=transform)


@dataset(own_test_set=True)
def svhn(
    *, train: bool, augment: bool, path: Folder, augmentation: Small = "basic", extra: bool = False
) -> LabelledImages:
    """SVHN from ``path/{train,extra,test}_32x32.mat``; with `extra`, trained on both, as in the SAM paper.

    Digits are not mirrored: ``basic`` is the crop alone.
    """
    transform = small_images(
        augment, augmentation, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), policy="SVHN", flip=False
    )
    names = (["train", "extra"] if extra else ["train"]) if train else ["test"]
    parts = [_read(tv.SVHN, path, split=name) for name in names]
    labels = torch.cat([torch.as_tensor(part.labels) for part in parts])
    return LabelledImages(ConcatDataset(parts), labels, num_classes=10, transform=transform)


@dataset(samples=60_000, own_test_set=True)
def fashion_mnist(
    *, train: bool, augment: bool, path: Folder, augmentation: Small = "basic", rgb: bool = False
) -> LabelledImages:
    """Fashion-MNIST from ``path/FashionMNIST/raw``; `rgb` repeats the one channel for networks of three."""
    first = [tf.Grayscale(3)] if rgb else []
    transform = small_images(augment, augmentation, (0.2860,), (0.3530,), size=28, first=first)
    data = _read(tv.FashionMNIST, path, train=train)
    return LabelledImages(data, data.targets, num_classes=10, transform=transform)


@dataset(own_test_set=True)
def imagefolder(
    *, train: bool, augment: bool, path: Folder, image_size: int = 224, resize: int = 256,
    augmentation: Small | Literal["imagenet"] = "imagenet", cache: bool = False,
    train_folder: str = "train", eval_folder: str = "val",
) -> LabelledImages:  # fmt: skip
    """Any images as ``path/train/<class>/*`` and ``path/val/<class>/*``.

    With ``augmentation: imagenet`` they are cropped and resized as ImageNet is. With those of the SAM paper for small
    images (``none``, ``basic``, ``cutout``, ``autoaugment``) all are first made ``image_size`` wide and high; `cache`
    then keeps them in memory once they are decoded, for all trainings in the process: ``3 * image_size ** 2`` bytes
    each.
    """
    small = augmentation != "imagenet"
    if cache and not small:
        raise BadArgument("cache", "must be false with augmentation 'imagenet', whose crops are of any size")
    folder = str(Path(path) / (train_folder if train else eval_folder))
    if small:
        data = (_cached_folder if cache else _small_folder)(folder, image_size)
        transform = small_images(augment, augmentation, *IMAGENET, size=image_size)
    else:
        data = _read(tv.ImageFolder, folder)
        crops = [tf.RandomResizedCrop(image_size), tf.RandomHorizontalFlip()]
        whole = [tf.Resize(resize), tf.CenterCrop(image_size)]
        transform = tf.Compose([*(crops if augment else whole), ToFloat(), tf.Normalize(*IMAGENET)])
    return LabelledImages(data, data.targets, num_classes=len(data.classes), transform=transform)


@lru_cache(maxsize=1)
def _mnist1d() -> tuple[torch.Tensor, torch.Tensor]:
    """All signals and their labels, from one call: each call of its generator normalises by its own samples."""
    arguments = {"num_samples": 18_000, "seed": 0}
    key = {"version": metadata.version("mnist1d"), **arguments}
    load = partial(torch.load, weights_only=True)
    return cached("mnist1d.pt", key, partial(_generated, **arguments), save=torch.save, load=load)


def _generated(**arguments: int) -> tuple[torch.Tensor, torch.Tensor]:
    # Imported here: it brings pyplot, and a client for a download that is not used.
    from mnist1d.data import get_dataset_args, make_dataset

    options = get_dataset_args()
    vars(options).update(arguments)
    streams = random.getstate(), np.random.get_state()
    try:
        data = make_dataset(options)  # seeds the global streams
    finally:
        random.setstate(streams[0])
        np.random.set_state(streams[1])
    signals = np.concatenate([data["x"], data["x_test"]])
    labels = np.concatenate([data["y"], data["y_test"]])
    return torch.tensor(signals, dtype=torch.float32).unsqueeze(1), torch.tensor(labels)


def _small_folder(folder: str, size: int) -> Any:
    return _read(tv.ImageFolder, folder, transform=tf.Resize((size, size)))


@lru_cache(maxsize=3)
def _cached_folder(folder: str, size: int) -> DecodedOnce:
    return DecodedOnce(_small_folder(folder, size))


def _read(dataset: Callable[..., Any], path: str, **options: Any) -> Any:
    if not Path(path).expanduser().is_dir():
        raise BadArgument("path", f"no folder {path!r}; put the data there, nothing is downloaded")
    try:
        return dataset(str(Path(path).expanduser()), **options)
    except (RuntimeError, OSError) as error:
        hint = str(error).replace(" You can use download=True to download it", "")
        raise BadArgument("path", f"{path!r} does not hold the data: {hint}") from error
