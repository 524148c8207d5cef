"""Working through lists of tensors in parts that fit a CPU's cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from sam_algos.core.tensors.lists import in_memory_order
from sam_algos.core.tensors.shards import is_sharded

__all__ = ["BLOCK", "blocks"]

BLOCK = 262144  # elements: three such blocks fit a core's share of the last-level cache


def blocks(*lists: Sequence[Tensor], like: Sequence[Tensor], whole: bool = False) -> Iterator[list[list[Tensor]]]:
    """Corresponding parts of lists of tensors, each small enough to stay in a CPU's cache.

    A chain of elementwise operations on lists, done block by block, then reads and writes memory once. A block
    holds several small tensors, or a piece of a large one. Elsewhere than on a CPU, and for sharded parameters, the
    one block is the whole; there is none for empty lists.

    Args:
        *lists: Aligned lists.
        like: The parameters that they belong to.
        whole: Whether the operations need each tensor in one piece; there is then one block.

    Yields:
        The parts, and with them the parameters that they belong to; none where these are not sharded.
    """
    if not lists[0]:
        return
    if whole or is_sharded(like) or {t.device.type for t in lists[0]} != {"cpu"}:
        yield [*map(list, lists), list(like)]
        return
    block: list[tuple[Tensor, ...]] = []
    size = 0
    for alike in zip(*lists, strict=True):
        if alike[0].numel() > BLOCK and (flat := in_memory_order(*alike)):
            for pieces in zip(*(t.split(BLOCK) for t in flat), strict=True):
                yield [*([piece] for piece in pieces), []]
            continue
        if size + alike[0].numel() > BLOCK and block:
            yield [*map(list, zip(*block, strict=True)), []]
            block, size = [], 0
        block.append(alike)
        size += alike[0].numel()
    if block:
        yield [*map(list, zip(*block, strict=True)), []]
