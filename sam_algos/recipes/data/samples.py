"""Labelled images, label noise on whatever has classes, and what is trained, validated and tested on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from sklearn.model_selection import train_test_split
from torch.utils.data import Subset, TensorDataset, default_collate
from torchvision.datasets import VisionDataset

from sam_algos.recipes.errors import BadArgument

if TYPE_CHECKING:
    from sam_algos.recipes.data.texts import LabelledTexts

Part = Literal["train", "validation", "test"]
"""Training samples; samples for choosing options and schedules; held-out samples to judge the result by."""

Data = TypeVar("Data", bound="LabelledImages | LabelledTexts")


@dataclass(eq=False)  # compared and hashed by identity, which Composer's RandAugment and AugMix need
class LabelledImages(VisionDataset):
    """Images of a classification data set, whose labels can be replaced.

    Args:
        images (Any): Indexed by sample, gives the stored image first. Batches of a ``TensorDataset`` without a
            transform are read by one indexing.
        labels (Sequence[int] | torch.Tensor): One class per sample; kept as a tensor of integers, shape ``(n,)``.
        num_classes (int): Number of classes.
        transform (Callable, optional): Turns an image into the network's input. Composer's algorithms that act on
            stored images insert their work here: before its ``ToTensor``, if it is a ``Compose``. Default: None.
    """

    images: Any
    labels: torch.Tensor
    num_classes: int
    transform: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        """Set the attributes of a data set of torchvision."""
        super().__init__("", transform=self.transform)
        self.labels = torch.as_tensor(self.labels, dtype=torch.int64)

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
        """Some of the samples, in the order of the indices; images are still read on demand."""
        indices = list(indices)
        in_memory = isinstance(self.images, TensorDataset)
        images = TensorDataset(self.images.tensors[0][indices]) if in_memory else Subset(self.images, indices)
        return replace(self, images=images, labels=self.labels[indices])


def flip_labels(data: Data, fraction: float, seed: int) -> Data:
    """Symmetric label noise: `fraction` of the labels are wrong, evenly over the wrong classes.

    Exactly ``round(fraction * n)`` samples, drawn without replacement, get a label drawn uniformly from
    the **other** classes: "a fraction of the training set's labels are randomly flipped" (SAM, section
    3.3), read literally. Where a paper draws from all classes instead, a draw may hit the true one: its
    noise level f is ``f * (1 - 1 / num_classes)`` here.

    Args:
        data (LabelledImages | LabelledTexts): With its true labels.
        fraction (float): Of wrong labels, in ``[0, 1)``.
        seed (int): Of the draw. It is not the run's seed: every run trains on the same labels.

    Returns:
        LabelledImages | LabelledTexts: The same samples with the noisy labels.

    Raises:
        ValueError: If `fraction` is outside ``[0, 1)``, and for data without classes.

    Example:
        >>> clean = LabelledImages(range(10), [0] * 10, num_classes=3)
        >>> int((flip_labels(clean, 0.4, seed=0).labels != 0).sum())
        4
    """
    if not 0 <= fraction < 1:
        raise BadArgument("label_noise", f"must be in [0, 1), got {fraction}")
    if not fraction:
        return data
    if data.num_classes < 2:
        raise BadArgument("label_noise", f"must be 0 without at least two classes, got {fraction}")
    generator = torch.Generator().manual_seed(seed)
    count = round(fraction * len(data))
    flipped = torch.randperm(len(data), generator=generator)[:count]
    shift = torch.randint(1, data.num_classes, (count,), generator=generator)
    labels = data.labels.clone()
    labels[flipped] = (labels[flipped] + shift) % data.num_classes
    return replace(data, labels=labels)


def divide(
    labels: torch.Tensor, *, validation: int, train: int | None, seed: int
) -> tuple[Sequence[int], Sequence[int]]:
    """Draw stratified training and validation samples from a training set: their indices, which are disjoint.

    With ``train=None`` all samples that are not set aside for validation are trained on.

    Raises:
        ValueError: If there are too few samples, or too few for the classes.

    Example:
        >>> chosen, validation = divide(torch.arange(8) % 2, validation=2, train=4, seed=0)
        >>> (len(chosen), len(validation), len({*chosen, *validation}))
        (4, 2, 6)
    """
    n = len(labels)
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise BadArgument("split_seed", f"must be an integer in [0, 2**32), got {seed!r}")
    for name, count, least in (("validation", validation, 0), ("train_subset", n if train is None else train, 1)):
        if not least <= count <= n:
            raise BadArgument(name, f"must be in [{least}, {n}], the size of the training set, got {count}")
    if train is not None and validation + train > n:
        raise BadArgument("train_subset", f"must be at most {n - validation} beside {validation} for validation")
    rest, aside = _cut(range(n), labels, validation, seed, "validation")
    others = len(rest) - (len(rest) if train is None else train)
    return _cut(rest, labels, others, seed, "train_subset")[0], aside


def _cut(
    indices: Sequence[int], labels: torch.Tensor, count: int, seed: int, name: str
) -> tuple[Sequence[int], Sequence[int]]:
    """Take ``count`` away, stratified."""
    if count in (0, len(indices)):
        return (indices, []) if count == 0 else ([], indices)
    try:
        kept, taken = train_test_split(indices, test_size=count, stratify=labels[list(indices)], random_state=seed)
    except ValueError as error:
        raise BadArgument(name, f"cannot keep the classes' shares: {error}") from error
    return list(kept), list(taken)
