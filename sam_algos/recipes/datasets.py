"""The data sets that a recipe can name, with the papers' transforms. Nothing is ever downloaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache, update_wrapper
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch.utils.data import ConcatDataset, TensorDataset
from torchvision import datasets as tv
from torchvision import transforms as tf
from torchvision.transforms import functional

from sam_algos.recipes.names import arguments_of, construct, lookup
from sam_algos.recipes.noise import LabelledImages, among, flip_labels, labelled
from sam_algos.recipes.splits import Part, check_part, divide

Loader = Callable[..., LabelledImages]

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

DATASETS: dict[str, Loader] = {}
"""The data sets by name: functions of ``train`` and of the options in the recipe."""


def build_dataset(where: str, section: Mapping[str, Any], *, train: bool, augment: bool = True) -> LabelledImages:
    """Load the data that a section of a recipe names.

    Args:
        where (str): The section, ``train_dataset`` or ``eval_dataset``.
        section (Mapping[str, Any]): The name, the data set's options, and for training ``label_noise``
            (see `flip_labels`) with its own ``noise_seed``; ``evaluate`` says which images the recipe evaluates on,
            ``test`` or ``validation``; where the test set is published, ``validation`` images are set aside and
            ``train_subset`` drawn from the training set by ``split_seed`` (see `divide`).
        train (bool): The training split with its augmentation, or the test split without.
        augment (bool, optional): False for the training split without its augmentation, too. Default: ``True``.

    Returns:
        LabelledImages: With the number of classes.

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


def _dataset(loader: Loader) -> Loader:
    """Put `loader`, a function of the part, into `DATASETS`, with the options that every data set has."""

    def load(
        *, train: bool, augment: bool = True, label_noise: float = 0.0, noise_seed: int = 0, evaluate: str = "test",
        **options: Any,
    ) -> LabelledImages:  # fmt: skip
        check_part(evaluate)
        data = loader(part="train" if train else evaluate, augment=train and augment, **options)
        if label_noise and not train:
            raise ValueError("label_noise is for training data: test labels are clean")
        return flip_labels(data, label_noise, noise_seed)

    _offer(load, loader, without="part")
    DATASETS[loader.__name__] = load
    return load


def _with_own_test_set(loader: Loader) -> Loader:
    """Make a function of the part from one of ``train``, the published half."""

    def load(
        *, part: Part, augment: bool, train_subset: int | None = None, validation: int = 0, split_seed: int = 0,
        **options: Any,
    ) -> LabelledImages:  # fmt: skip
        if part == "test":
            return loader(train=False, augment=False, **options)
        pool = loader(train=True, augment=augment, **options)
        chosen, aside = divide(pool.labels, validation=validation, train=train_subset, seed=split_seed)
        if part == "validation" and not aside:
            raise ValueError("evaluate: there are no validation images; set some aside with validation, e.g. 2000")
        return among(pool, chosen if part == "train" else aside)

    _offer(load, loader, without="train")
    return load


def _offer(load: Loader, loader: Loader, without: str) -> None:
    """Let `load` look like `loader`: what users may set is read from the signature, which names the options of both."""
    options = {**inspect.signature(loader).parameters, **inspect.signature(load).parameters}
    for hidden in ("options", without):
        del options[hidden]
    hints = {**load.__annotations__, **loader.__annotations__}
    update_wrapper(load, loader)
    load.__signature__ = inspect.Signature(list(options.values()))  # type: ignore[attr-defined]
    load.__annotations__ = hints


@_dataset
def digits(*, part: Part, augment: bool, split_seed: int = 0) -> LabelledImages:
    """scikit-learn's 1797 handwritten digits of 8x8 pixels, from the installed package; never augmented.

    360 of them are for validation, the same in every run. Of the others `split_seed` draws 360 to test on and 1077 to
    train on, so that an interval over seeds covers the split, and no choice was ever made on a test image.
    """
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).div(8).sub(1).reshape(-1, 1, 8, 8)
    data = labelled(TensorDataset(images), torch.as_tensor(labels), num_classes=10)
    others, validation = divide(data.labels, validation=360, train=None, seed=0)
    rest = among(data, others)
    train, test = divide(rest.labels, validation=360, train=None, seed=split_seed)
    return among(data, validation) if part == "validation" else among(rest, train if part == "train" else test)


@_dataset
@_with_own_test_set
def cifar10(*, train: bool, augment: bool, path: str, augmentation: str = "basic") -> LabelledImages:
    """CIFAR-10 from ``path/cifar-10-batches-py``."""
    transform = _small_images(augment, augmentation, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    data = _read(tv.CIFAR10, path, train=train, transform=transform)
    return labelled(data, data.targets, num_classes=10)


@_dataset
@_with_own_test_set
def cifar100(*, train: bool, augment: bool, path: str, augmentation: str = "basic") -> LabelledImages:
    """CIFAR-100 from ``path/cifar-100-python``."""
    transform = _small_images(augment, augmentation, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    data = _read(tv.CIFAR100, path, train=train, transform=transform)
    return labelled(data, data.targets, num_classes=100)


@_dataset
@_with_own_test_set
def svhn(*, train: bool, augment: bool, path: str, augmentation: str = "basic", extra: bool = False) -> LabelledImages:
    """SVHN from ``path/{train,extra,test}_32x32.mat``; with `extra`, trained on both, as in the SAM paper.

    Digits are not mirrored: ``basic`` is the crop alone.
    """
    transform = _small_images(
        augment, augmentation, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), policy="SVHN", flip=False
    )
    names = (["train", "extra"] if extra else ["train"]) if train else ["test"]
    parts = [_read(tv.SVHN, path, split=name, transform=transform) for name in names]
    labels = torch.cat([torch.as_tensor(part.labels) for part in parts])
    return labelled(ConcatDataset(parts), labels, num_classes=10)


@_dataset
@_with_own_test_set
def fashion_mnist(
    *, train: bool, augment: bool, path: str, augmentation: str = "basic", rgb: bool = False
) -> LabelledImages:
    """Fashion-MNIST from ``path/FashionMNIST/raw``; `rgb` repeats the one channel for networks of three."""
    first = [tf.Grayscale(3)] if rgb else []
    transform = _small_images(augment, augmentation, (0.2860,), (0.3530,), size=28, first=first)
    data = _read(tv.FashionMNIST, path, train=train, transform=transform)
    return labelled(data, data.targets, num_classes=10)


@_dataset
@_with_own_test_set
def imagefolder(
    *, train: bool, augment: bool, path: str, image_size: int = 224, resize: int = 256,
    augmentation: str = "imagenet", cache: bool = False, train_folder: str = "train", eval_folder: str = "val",
) -> LabelledImages:  # fmt: skip
    """Any images as ``path/train/<class>/*`` and ``path/val/<class>/*``.

    With ``augmentation: imagenet`` they are cropped and resized as ImageNet is. With those of the SAM paper for small
    images (``none``, ``basic``, ``cutout``, ``autoaugment``) all are first made ``image_size`` wide and high; `cache`
    then keeps them in memory once they are decoded, for all trainings in the process: ``3 * image_size ** 2`` bytes
    each, four times as many where nothing is random.
    """
    small = augmentation != "imagenet"
    if small and augmentation not in _AUGMENTATIONS:
        raise ValueError(f"augmentation {augmentation!r} must be one of imagenet, {', '.join(_AUGMENTATIONS)}")
    if cache and not small:
        raise ValueError("cache must be false with augmentation 'imagenet', whose crops are of any size")
    folder = str(Path(path) / (train_folder if train else eval_folder))
    if small:
        return _small_folder(folder, image_size, augmentation if augment else "none", cache)
    crops = [tf.RandomResizedCrop(image_size), tf.RandomHorizontalFlip()]
    whole = [tf.Resize(resize), tf.CenterCrop(image_size)]
    transform = tf.Compose([*(crops if augment else whole), tf.ToTensor(), tf.Normalize(*_IMAGENET)])
    data = _read(tv.ImageFolder, folder, transform=transform)
    return labelled(data, data.targets, num_classes=len(data.classes))


def _small_folder(folder: str, size: int, augmentation: str, cache: bool) -> LabelledImages:
    if cache:
        data = _cached_folder(folder, size, augmentation)
    else:
        steps: list[Any] = [tf.Resize((size, size)), _small_images(True, augmentation, *_IMAGENET, size=size)]
        data = _read(tv.ImageFolder, folder, transform=tf.Compose(steps))
    return labelled(data, data.targets, num_classes=len(data.classes))


@lru_cache(maxsize=3)
def _cached_folder(folder: str, size: int, augmentation: str) -> _Cached:
    images = _read(tv.ImageFolder, folder, transform=tf.Resize((size, size)))
    return _Cached(images, _small_images(True, augmentation, *_IMAGENET, size=size), random=augmentation != "none")


class _Cached:
    """Images that are decoded once; what is done to them at random is done anew each time."""

    def __init__(self, images: Any, transform: Callable[[Any], Any], *, random: bool) -> None:
        self.targets, self.classes = images.targets, images.classes
        self._images = images
        self._once, self._again = (functional.pil_to_tensor, transform) if random else (transform, None)
        self._known: dict[int, Any] = {}

    def __getitem__(self, index: int) -> tuple[Any]:
        if (known := self._known.get(index)) is None:
            known = self._known[index] = self._once(self._images[index][0])
        return (self._again(known) if self._again else known,)


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
    steps += [_to_float, tf.Normalize(mean, std)]
    if train and augmentation in ("cutout", "autoaugment"):
        steps.append(_Cutout(size // 2))
    return tf.Compose(steps)


def _to_float(image: Any) -> torch.Tensor:
    """An image in [0, 1], be it decoded by PIL or a tensor of bytes already."""
    return functional.convert_image_dtype(image) if isinstance(image, torch.Tensor) else functional.to_tensor(image)


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
