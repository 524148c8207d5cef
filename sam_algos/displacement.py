"""Moving the weights to the perturbed point and back, exactly and with as few bytes as can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["Displacement"]

SMALL = 8192  # elements; up to here a call costs more than a second pass over a tensor that is still in cache

_Layout = tuple[bool, torch.dtype, tuple[int, ...], int]


class Displacement:
    """Moves weights to ``w + scale · direction`` and back; one per optimizer.

    Where a parameter owns its storage, the displaced weights are written into the direction's own buffer and the
    parameter is pointed at it: nothing is copied aside, and going back is exact because the original was never
    touched. Elsewhere (shards, views, shared storage) the weights are copied aside and displaced in place. All
    it remembers between steps is which parameters own their storage.
    """

    def __init__(self) -> None:
        self._pointers: list[int] = []
        self._layouts: list[_Layout | None] = []

    @contextmanager
    def __call__(
        self,
        params: Sequence[Tensor],
        weights: Sequence[Tensor],
        directions: Sequence[Tensor],
        scales: Sequence[Tensor],
        disposable: Sequence[bool],
    ) -> Iterator[None]:
        """Run the body at the displaced weights.

        Afterwards every weight is what it was, bit for bit, whatever the body does: raise an exception, or be
        interrupted, even twice.

        Args:
            params: The parameters.
            weights: This rank's part of the value of each.
            directions: This rank's part of the direction of each.
            scales: The factor of each direction, a scalar tensor.
            disposable: Whether each direction may be overwritten.
        """
        layouts = self._own_layouts(params, weights)
        kept = [w.clone() if layout is None else w for w, layout in zip(weights, layouts, strict=True)]

        def put_back() -> None:
            for p, w, layout, original in zip(params, weights, layouts, kept, strict=True):
                if layout is None:
                    w.copy_(original)
                else:
                    p.data = original

        reuse = [
            free and layout is not None and _layout(d) == layout and not d.requires_grad
            for layout, free, d in zip(layouts, disposable, directions, strict=True)
        ]
        try:
            moved = _displaced(weights, directions, scales, reuse)
            for p, w, layout, displaced in zip(params, weights, layouts, moved, strict=True):
                if layout is None:
                    w.copy_(displaced)
                else:
                    p.data = displaced
            del moved
            yield
        finally:
            try:
                put_back()
            except BaseException:
                put_back()
                raise

    def _own_layouts(self, params: Sequence[Tensor], weights: Sequence[Tensor]) -> list[_Layout | None]:
        """The layout of each parameter that may be pointed at another buffer without anybody else noticing."""
        pointers = [w.data_ptr() for w in weights]
        if pointers != self._pointers:
            holders = Counter(pointers)
            self._layouts = [
                _layout(w) if holders[pointer] == 1 and _is_alone_in_its_storage(p, w) else None
                for p, w, pointer in zip(params, weights, pointers, strict=True)
            ]
            self._pointers = pointers
        return self._layouts


def _displaced(
    weights: Sequence[Tensor], directions: Sequence[Tensor], scales: Sequence[Tensor], reuse: Sequence[bool]
) -> list[Tensor]:
    """``w + scale · direction`` of each, into the direction's own buffer where ``reuse`` says so."""
    moved = list(directions)
    for scale, device, members in _by_scale_and_device(scales, weights):
        large = [i for i in members if device.type == "cpu" and weights[i].numel() > SMALL]
        alpha = float(scale) if large else 0.0
        for i in large:  # one pass over memory
            moved[i] = torch.add(weights[i], directions[i], alpha=alpha, out=directions[i] if reuse[i] else None)
        rest = [i for i in members if weights[i].numel() <= SMALL] if device.type == "cpu" else members
        if rest:  # a few calls however many tensors, and the scale stays on its device
            _displace_together(moved, weights, scale.to(device), rest, reuse)
    return moved


def _displace_together(
    moved: list[Tensor], weights: Sequence[Tensor], scale: Tensor, members: Sequence[int], reuse: Sequence[bool]
) -> None:
    fresh = [i for i in members if not reuse[i]]
    if fresh:
        buffers = [torch.empty_like(weights[i]) for i in fresh]
        torch._foreach_copy_(buffers, [moved[i] for i in fresh])
        for i, buffer in zip(fresh, buffers, strict=True):
            moved[i] = buffer
    together = [moved[i] for i in members]
    torch._foreach_mul_(together, scale)
    torch._foreach_add_(together, [weights[i] for i in members])


def _by_scale_and_device(
    scales: Sequence[Tensor], tensors: Sequence[Tensor]
) -> Iterator[tuple[Tensor, torch.device, list[int]]]:
    groups: dict[tuple[int, torch.device], list[int]] = {}
    for i, (scale, tensor) in enumerate(zip(scales, tensors, strict=True)):
        groups.setdefault((id(scale), tensor.device), []).append(i)
    for (_, device), members in groups.items():
        yield scales[members[0]], device, members


def _layout(tensor: Tensor) -> _Layout:
    """What a buffer must share with a parameter to stand in for it; the size of the storage tells a view apart."""
    return type(tensor) is Tensor, tensor.dtype, tensor.stride(), tensor.untyped_storage().nbytes()


def _is_alone_in_its_storage(param: Tensor, w: Tensor) -> bool:
    """Whether the parameter is all there is in its memory, and this process's alone."""
    return (
        type(param) in (Tensor, torch.nn.Parameter)
        and w.numel() > 0
        and w.untyped_storage().nbytes() == w.numel() * w.element_size()
        and not (w.device.type == "cpu" and w.is_shared())
    )
