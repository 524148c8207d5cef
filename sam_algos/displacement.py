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

        own = [i for i, layout in enumerate(layouts) if layout is not None]
        rest = [i for i, layout in enumerate(layouts) if layout is None]
        reuse = [
            free and layout is not None and _layout(d) == layout and not d.requires_grad
            for layout, free, d in zip(layouts, disposable, directions, strict=True)
        ]
        try:
            _repoint(params, _displaced(own, weights, directions, scales, reuse))
            _displace_in_place(rest, weights, directions, scales)
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


def _repoint(params: Sequence[Tensor], moved: dict[int, Tensor]) -> None:
    for i, displaced in moved.items():
        params[i].data = displaced


def _displace_in_place(
    members: Sequence[int], weights: Sequence[Tensor], directions: Sequence[Tensor], scales: Sequence[Tensor]
) -> None:
    """``w += scale · direction``, one member after the other, so that parameters which share memory add up."""
    for scale, _, group in _by_scale_and_device(members, scales, weights):
        scaled = torch._foreach_mul([directions[i] for i in group], scale)
        torch._foreach_add_([weights[i] for i in group], scaled)


def _displaced(
    members: Sequence[int],
    weights: Sequence[Tensor],
    directions: Sequence[Tensor],
    scales: Sequence[Tensor],
    reuse: Sequence[bool],
) -> dict[int, Tensor]:
    """``w + scale · direction`` of each member, into the direction's own buffer where ``reuse`` says so."""
    moved = {i: directions[i] for i in members}
    for scale, device, group in _by_scale_and_device(members, scales, weights):
        large = [i for i in group if device.type == "cpu" and weights[i].numel() > SMALL and _is_wide(weights[i])]
        alpha = float(scale) if large else 0.0
        for i in large:  # one pass over memory
            moved[i] = torch.add(weights[i], directions[i], alpha=alpha, out=directions[i] if reuse[i] else None)
        if rest := [i for i in group if i not in set(large)] if large else group:
            # A few calls however many tensors, and the scale stays on its device.
            _displace_together(moved, weights, scale, rest, reuse)
    return moved


def _is_wide(w: Tensor) -> bool:
    """Whether any scale is a number of the tensor's type; in float16 that of a vanishing gradient is not."""
    return w.dtype not in (torch.float16, torch.bfloat16)


def _displace_together(
    moved: dict[int, Tensor], weights: Sequence[Tensor], scale: Tensor, members: Sequence[int], reuse: Sequence[bool]
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
    members: Sequence[int], scales: Sequence[Tensor], tensors: Sequence[Tensor]
) -> Iterator[tuple[Tensor, torch.device, list[int]]]:
    """The members that share a scale and a device, with that scale on that device."""
    groups: dict[tuple[int, torch.device], list[int]] = {}
    for i in members:
        groups.setdefault((id(scales[i]), tensors[i].device), []).append(i)
    for (_, device), group in groups.items():
        yield scales[group[0]].to(device), device, group


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
