"""Rescaling gradients in blocks that fit a CPU's cache, so that memory is read and written once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sam_algos.core.tensors import lists as tensors
from sam_algos.core.tensors.shards import is_sharded

__all__ = ["BLOCK", "block_size", "rescale_twice_"]

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")  # Linux describes the first processor's caches here
_LEAST, _MOST = 1 << 16, 1 << 19  # elements: below, calls cost more than memory; above, nothing is gained
_SMALL = 8192  # elements: up to here one call for many tensors costs less than a call for each


def block_size(caches: Path = _CACHES) -> int:
    """Elements of a block: three float32 blocks fit the larger of a processor's own cache and its share of others.

    Args:
        caches: The folder in which the system describes the caches.

    Returns:
        int: A power of two between 65,536 and 524,288; 131,072 where nothing is known.
    """
    shares = []
    for cache in caches.glob("index*"):
        try:
            processors = int((cache / "shared_cpu_map").read_text().replace(",", ""), 16).bit_count()
            shares.append(int((cache / "size").read_text().strip().removesuffix("K")) * 1024 // processors)
        except (OSError, ValueError, ZeroDivisionError):  # described in another way
            continue
    elements = max(shares, default=12 << 17) // 12
    return min(max(1 << (elements.bit_length() - 1), _LEAST), _MOST)


BLOCK = block_size()
"""The most elements in a block."""


def rescale_twice_(
    values: Sequence[Tensor],
    factors: Callable[..., list[Tensor]],
    *others: Sequence[Tensor],
    like: Sequence[Tensor],
    factor: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Replace ``values`` by ``T² values`` in place.

    Args:
        values: The tensors to rescale.
        factors: Returns ``T`` of each tensor, broadcastable to it, given the values, the ``others`` and the parameters.
        *others: Lists aligned with the values.
        like: The parameters that the values belong to.
        factor: Returns ``T`` of one tensor in new memory, given its values and those of the ``others``. Only for an
            elementwise ``T``: large tensors on a CPU are then rescaled block by block.

    Returns:
        Tensor: ``‖T values‖``, over all shards; a scalar tensor.
    """
    lists = (values, *others)
    together, norms = range(len(values)), []
    if factor is not None and not is_sharded(like) and all([v.is_cpu for v in values]):
        flat = [
            tensors.in_memory_order(*alike) if alike[0].numel() > _SMALL else None for alike in zip(*lists, strict=True)
        ]
        together = [i for i, found in enumerate(flat) if found is None]
        if squares := [square for found in flat if found is not None for square in _rescale_flat_(found, factor)]:
            norms.append(torch.stack(squares).sum().sqrt())
    if together:
        chosen, *rest = ([each[i] for i in together] for each in (*lists, like))
        scales = factors(chosen, *rest)
        torch._foreach_mul_(chosen, scales)
        norms.append(tensors.norm(chosen, rest[-1]))
        torch._foreach_mul_(chosen, scales)
    return norms[0] if len(norms) == 1 else tensors.norm(norms, norms)


def _rescale_flat_(alike: Sequence[Tensor], factor: Callable[..., Tensor]) -> list[Tensor]:
    """Rescale one tensor, block by block; returns the square of ``‖T value‖`` of each block."""
    squares = []
    for value, *rest in zip(*(t.split(BLOCK) for t in alike), strict=True):
        scale = factor(value, *rest)
        value.mul_(scale)
        squares.append(tensors.square(value))
        value.mul_(scale)
    return squares
