"""Some of a batch's samples, and what a batch is made of: a tensor, or any nesting of mappings, lists and tuples."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "EVERYTHING",
    "Everything",
    "First",
    "Group",
    "Rows",
    "Selection",
    "largest",
    "map_tensors",
    "sample_count",
    "tensors_in",
]


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """The tensors of a batch."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_in(value)
    elif isinstance(batch, (list, tuple)):
        for value in batch:
            yield from tensors_in(value)


def sample_count(batch: Any) -> int:
    """The number of samples: the first dimension of a batch's tensors.

    Raises:
        ValueError: If they do not agree on one.
    """
    sizes = sorted({len(tensor) for tensor in tensors_in(batch) if tensor.ndim})
    if len(sizes) != 1:
        found = f"tensors of {' and '.join(map(str, sizes))} samples" if sizes else "no tensor with samples"
        raise ValueError(
            "ESAM, SAM(m=...) and any method with ascent_fraction < 1 need batches whose tensors agree on their first "
            f"dimension, the samples; this {type(batch).__name__} has {found}."
        )
    return sizes[0]


class Selection(ABC):
    """Some of a batch's samples. Called with a batch, or with a tensor of one, it returns those samples of it.

    The batch's tensors have the samples as their first dimension, as for Composer's own splitting; tensors without
    dimensions are left as they are, and so is what is no tensor, except for lists and tuples that have as many entries
    as there are samples.
    """

    @abstractmethod
    def rows(self, size: int) -> slice | Tensor:
        """Which of ``size`` samples: a slice, or their indices in ascending order."""

    def __call__(self, batch: Any) -> Any:
        """The chosen samples, in a batch of the same structure.

        Raises:
            ValueError: If the tensors do not agree on the number of samples.
        """
        size = sample_count(batch)
        return _pick(batch, size, self.rows(size))

    def count(self, size: int) -> int:
        """How many of ``size`` samples it is."""
        rows = self.rows(size)
        return len(range(*rows.indices(size))) if isinstance(rows, slice) else len(rows)

    def share(self, size: int) -> float:
        """How much of ``size`` samples it is, in (0, 1]."""
        return self.count(size) / max(1, size)


class Everything(Selection):
    """All samples, untouched."""

    def rows(self, size: int) -> slice:
        """All of them."""
        return slice(0, size)

    def __call__(self, batch: Any) -> Any:
        """The batch itself."""
        return batch


EVERYTHING = Everything()


@dataclass(frozen=True)
class First(Selection):
    """The first samples.

    Args:
        fraction (float): How many, in (0, 1]; rounded up, and to two where there are two, as BatchNorm needs.
    """

    fraction: float

    def rows(self, size: int) -> slice:
        """The first ``fraction`` of them."""
        count = math.ceil(self.fraction * size * (1 - 1e-9))  # so that 0.07 of 100 is 7
        return slice(0, min(size, max(2, count)))


@dataclass(frozen=True)
class Group(Selection):
    """Consecutive samples; fewer at the end.

    Args:
        start (int): The first of them.
        m (int): How many.
    """

    start: int
    m: int

    def rows(self, size: int) -> slice:
        """Those from ``start`` on.

        Raises:
            ValueError: If there are none.
        """
        if self.start >= size:
            raise ValueError(
                f"SAM(m={self.m}): a microbatch of {size} samples has none from sample {self.start} on, where another "
                "has; the microbatches of a step must be of one size."
            )
        return slice(self.start, min(self.start + self.m, size))


@dataclass(frozen=True, eq=False)
class Rows(Selection):
    """The samples with given indices.

    Args:
        indices (Tensor): In ascending order.
        size (int): Of the batch that they were chosen from.
    """

    indices: Tensor
    size: int

    def rows(self, size: int) -> Tensor:
        """The indices.

        Raises:
            ValueError: If the batch is not of the size that they were chosen from.
        """
        if size != self.size:
            raise ValueError(f"Samples were chosen from a batch of {self.size}, and this one has {size}.")
        return self.indices


def _pick(value: Any, size: int, rows: slice | Tensor) -> Any:
    return map_tensors(value, lambda t: t[rows] if isinstance(rows, slice) else t[rows.to(t.device)], size, rows)


def map_tensors(
    value: Any, function: Callable[[Tensor], Any], size: int | None = None, rows: slice | Tensor | None = None
) -> Any:
    """The same structure with ``function`` of each tensor that has dimensions.

    With ``size`` and ``rows``, lists and tuples without tensors that have ``size`` entries keep those ``rows``.
    """
    if isinstance(value, Tensor):
        return function(value) if value.ndim else value
    if isinstance(value, Mapping):
        items = {key: map_tensors(item, function, size, rows) for key, item in value.items()}
        if type(value) is dict or not isinstance(value, MutableMapping):
            return items
        changed = copy.copy(value)  # a tokenizer's batch has attributes too
        for key, item in items.items():  # Hugging Face's outputs refuse to be updated
            changed[key] = item
        return changed
    if isinstance(value, (list, tuple)):
        if rows is not None and size is not None and len(value) == size and not any(True for _ in tensors_in(value)):
            chosen = range(size)[rows] if isinstance(rows, slice) else rows.tolist()
            return type(value)([value[i] for i in chosen])
        items = [map_tensors(item, function, size, rows) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def largest(values: Tensor, count: int) -> Tensor:
    """The indices of the ``count`` largest values, in ascending order."""
    return torch.sort(torch.topk(values, count).indices).values
