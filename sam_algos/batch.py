"""What a batch is made of: a tensor, or any nesting of mappings, lists and tuples with tensors in it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor

__all__ = ["first_samples", "sample_counts", "tensors_in"]


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


def sample_counts(batch: Any) -> set[int]:
    """The first dimensions of a batch's tensors: one number, where they are the samples."""
    return {len(tensor) for tensor in tensors_in(batch) if tensor.ndim}


def first_samples(batch: Any, fraction: float) -> Any:
    """The first samples of a batch, as views of its tensors.

    Args:
        batch: Its tensors have the samples as their first dimension, as for Composer's own splitting; tensors without
            dimensions are left as they are, and so is what is no tensor, except for lists and tuples that have as many
            entries as there are samples.
        fraction: How many of the samples, in (0, 1]; rounded up, and to two where there are two, as BatchNorm needs.

    Returns:
        A batch of the same structure.

    Raises:
        ValueError: If the tensors do not agree on the number of samples.
    """
    sizes = sorted(sample_counts(batch))
    if len(sizes) != 1:
        found = f"tensors of {' and '.join(map(str, sizes))} samples" if sizes else "no tensor with samples"
        raise ValueError(
            "ascent_fraction < 1 needs batches whose tensors agree on their first dimension, the samples; this "
            f"{type(batch).__name__} has {found}."
        )
    [size] = sizes
    count = math.ceil(fraction * size * (1 - 1e-9))  # so that 0.07 of 100 is 7
    return _first(batch, size, min(size, max(2, count)))


def _first(value: Any, size: int, count: int) -> Any:
    if isinstance(value, Tensor):
        return value[:count] if value.ndim else value
    if isinstance(value, Mapping):
        items = {key: _first(item, size, count) for key, item in value.items()}
        if type(value) is dict or not isinstance(value, MutableMapping):
            return items
        narrowed = copy.copy(value)  # a tokenizer's batch has attributes too
        narrowed.update(items)
        return narrowed
    if isinstance(value, (list, tuple)):
        if len(value) == size and not any(True for _ in tensors_in(value)):
            return value[:count]
        items = [_first(item, size, count) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
