"""Transforms of stored images: the SAM paper's augmentations, and a cache of decoded images."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torchvision import transforms as tf
from torchvision.transforms import functional

Small = Literal["none", "basic", "cutout", "autoaugment"]
"""The columns of the SAM paper's table 1."""

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of each channel."""


def small_images(
    augment: bool, augmentation: Small, mean: tuple[float, ...], std: tuple[float, ...], *, size: int = 32,
    policy: str = "CIFAR10", flip: bool = True, first: list[Any] | None = None,
) -> tf.Compose:  # fmt: skip
    """The transform of the SAM paper's table 1.

    Args:
        augment (bool): False for samples that are not trained on.
        augmentation (Small): The column of the table.
        mean (tuple[float, ...]): Mean of each channel, with values in ``[0, 1]``.
        std (tuple[float, ...]): Standard deviation of each channel.
        size (int, optional): Height and width. Default: ``32``.
        policy (str, optional): AutoAugment's policy. Default: ``"CIFAR10"``.
        flip (bool, optional): Whether a mirrored image has the same class. Default: ``True``.
        first (list, optional): Transforms to put before all others. Default: none.

    Returns:
        transforms.Compose: From a PIL image, or a tensor of bytes, to a normalised tensor.
    """
    augmentation = augmentation if augment else "none"
    steps: list[Any] = list(first or [])
    if augmentation != "none":
        steps += [tf.RandomCrop(size, padding=4), *([tf.RandomHorizontalFlip()] if flip else [])]
    if augmentation == "autoaugment":
        steps.append(tf.AutoAugment(tf.AutoAugmentPolicy[policy]))
    steps += [ToFloat(), tf.Normalize(mean, std)]
    if augmentation in ("cutout", "autoaugment"):
        steps.append(Cutout(size // 2))
    return tf.Compose(steps)


class ToFloat(tf.ToTensor):
    """Turns a PIL image or a tensor into a tensor with values in ``[0, 1]``.

    It is a ``ToTensor``, as Composer's algorithms insert their transforms before one.
    """

    def __call__(self, pic: Any) -> torch.Tensor:
        """The image as a tensor of floats."""
        if not isinstance(pic, torch.Tensor):
            return functional.to_tensor(pic)
        return pic if pic.is_floating_point() else pic.float().div(255)


def centred(image: torch.Tensor) -> torch.Tensor:
    """From ``[0, 1]`` to ``[-1, 1]``."""
    return image.mul(2).sub(1)


class Cutout:
    """Zero a square of width `length` around a random pixel of a normalised image (DeVries & Taylor, 2017)."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """The image with a hole."""
        spans = []
        for size in image.shape[-2:]:
            start = int(torch.randint(size, ())) - self.length // 2
            spans.append(slice(max(start, 0), max(start + self.length, 0)))
        image = image.clone()
        image[(..., *spans)] = 0.0
        return image


class DecodedOnce:
    """The images of an ``ImageFolder`` as tensors of bytes, kept in memory after their first read."""

    def __init__(self, images: Any) -> None:
        self.targets, self.classes = images.targets, images.classes
        self._images = images
        self._known: dict[int, torch.Tensor] = {}

    def __getitem__(self, index: int) -> tuple[torch.Tensor]:
        """The image alone."""
        if (known := self._known.get(index)) is None:
            known = self._known[index] = functional.pil_to_tensor(self._images[index][0])
        return (known,)
