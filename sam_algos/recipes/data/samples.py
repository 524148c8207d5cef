"""Labelled images, and symmetric label noise on whatever has classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch.utils.data import Subset, TensorDataset, default_collate
from torchvision.datasets import VisionDataset

from sam_algos.recipes.errors import BadArgument
from sam_algos.recipes.texts import LabelledTexts, TextBlocks


@dataclass(eq=False)  # compared and hashed by identity, which Composer's RandAugment and AugMix need
class LabelledImages(VisionDataset):
    """Images of a classification data set, whose labels can be replaced.

    Args:
        images (Any): Indexed by sample, gives the image first: as it is stored. Of a ``TensorDataset`` without a
            transform a whole batch is read by one indexing.
        labels (torch.Tensor): One integer class per sample, shape ``(n,)``.
        num_classes (int): Number of classes.
        transform (Callable, optional): Makes an image what the network gets. Algorithms of Composer's that act on
            stored images add to it what they do: before its ``ToTensor``, if it is a ``Compose``. Default: None.
    """

    images: Any
    labels: torch.Tensor
    num_classes: int
    transform: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        """Have the attributes that a data set of torchvision has."""
        super().__init__("", transform=self.transform)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """The image and the label of one sample."""
        image = self.images[index][0]
        return image if self.transform is None else self.transform(image), int(self.labels[index])

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """What torch's DataLoader asks for a batch: the collated batch itself, or its samples; for `collate`."""
        if isinstance(self.images, TensorDataset) and self.transform is None:
            return [self.images.tensors[0][indices], self.labels[indices]]
        return [self[index] for index in indices]

    @staticmethod
    def collate(batch: list[Any]) -> Any:
        """A batch from what `__getitems__` gives."""
        return batch if isinstance(batch[0], torch.Tensor) else default_collate(batch)

    def among(self, indices: Sequence[int]) -> LabelledImages:
        """Some of the samples, in the order of the indices; images are still read when they are asked for."""
        indices = list(indices)
        in_memory = isinstance(self.images, TensorDataset)
        images = TensorDataset(self.images.tensors[0][indices]) if in_memory else Subset(self.images, indices)
        return replace(self, images=images, labels=self.labels[indices])


Samples = LabelledImages | LabelledTexts | TextBlocks
"""What a data set of a recipe is."""

Data = TypeVar("Data", bound=Samples)


def labelled(
    images: Any,
    labels: Sequence[int] | torch.Tensor,
    num_classes: int,
    transform: Callable[[Any], Any] | None = None,
) -> LabelledImages:
    """Labelled images from what a data set of torchvision offers.

    Args:
        images (Any): Indexed by sample, gives the image first.
        labels (Sequence[int] | torch.Tensor): One class per sample.
        num_classes (int): Number of classes.
        transform (Callable, optional): Makes an image what the network gets. Default: None.

    Returns:
        LabelledImages: With integer labels.
    """
    return LabelledImages(images, torch.as_tensor(labels, dtype=torch.int64), num_classes, transform)


def flip_labels(data: Data, fraction: float, seed: int) -> Data:
    """Symmetric label noise: `fraction` of the labels are wrong, evenly over the wrong classes.

    Exactly ``round(fraction * n)`` samples, drawn without replacement, get a label drawn uniformly from
    the **other** classes: "a fraction of the training set's labels are randomly flipped" (SAM, section
    3.3), read literally. Where a work draws from all classes instead, a draw may hit the true one: its
    noise level f is ``f * (1 - 1 / num_classes)`` here.

    Args:
        data (Samples): With its true labels.
        fraction (float): Of wrong labels, in ``[0, 1)``.
        seed (int): Of the draw, apart from that of the run: every run trains on the same labels.

    Returns:
        Samples: The same with the noisy labels.

    Raises:
        ValueError: If `fraction` is outside ``[0, 1)``, and for text without classes.

    Example:
        >>> clean = labelled(range(10), [0] * 10, num_classes=3)
        >>> int((flip_labels(clean, 0.4, seed=0).labels != 0).sum())
        4
    """
    if not 0 <= fraction < 1:
        raise BadArgument("label_noise", f"must be in [0, 1), got {fraction}")
    if not fraction:
        return data
    if isinstance(data, TextBlocks):
        raise BadArgument("label_noise", f"must be 0 where text has no classes, got {fraction}")
    generator = torch.Generator().manual_seed(seed)
    count = round(fraction * len(data))
    flipped = torch.randperm(len(data), generator=generator)[:count]
    shift = torch.randint(1, data.num_classes, (count,), generator=generator)
    labels = data.labels.clone()
    labels[flipped] = (labels[flipped] + shift) % data.num_classes
    return replace(data, labels=labels)
