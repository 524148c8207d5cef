"""Moving the weights to the perturbed point and back, exactly and with as few bytes as can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["Displacement"]

SMALL = 8192  # elements; up to here a call costs more than a second pass over a tensor that is still in cache

_Layout = tuple[type, torch.dtype, tuple[int, ...], int]


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
        own = [i for i, layout in enumerate(layouts) if layout is not None]
        rest = [i for i, layout in enumerate(layouts) if layout is None]
        aside = [weights[i].clone() for i in rest]

        def put_back() -> None:
            for i in own:
                params[i].data = weights[i]
            for i, original in zip(rest, aside, strict=True):
                weights[i].copy_(original)

        found = zip(disposable, _layouts(directions), layouts, strict=True)
        reuse = [free and direction == layout for free, direction, layout in found]
        try:
            for i, displaced in zip(own, _displaced(own, weights, directions, scales, reuse), strict=True):
                params[i].data = displaced
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
                layout if holders[pointer] == 1 and _is_alone_in_its_storage(p, w) else None
                for p, w, layout, pointer in zip(params, weights, _layouts(weights), pointers, strict=True)
            ]
            self._pointers = pointers
        return self._layouts


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
) -> list[Tensor]:
    """``w + scale · direction`` of each member, into the direction's own buffer where ``reuse`` says so."""
    moved = list(directions)
    for scale, device, group in _by_scale_and_device(members, scales, weights):
        at_once = group if device.type == "cpu" else ()
        large = [i for i in at_once if weights[i].numel() > SMALL and _is_wide(weights[i])]
        alpha = float(scale) if large else 0.0
        for i in large:  # one pass over memory
            moved[i] = torch.add(weights[i], directions[i], alpha=alpha, out=directions[i] if reuse[i] else None)
        # A few calls however many tensors, and the scale stays on its device.
        together = sorted(set(group).difference(large)) if large else group
        if fresh := [i for i in together if not reuse[i]]:
            buffers = [torch.empty_like(weights[i]) for i in fresh]
            torch._foreach_copy_(buffers, [directions[i] for i in fresh])
            for i, buffer in zip(fresh, buffers, strict=True):
                moved[i] = buffer
        if together:
            torch._foreach_mul_([moved[i] for i in together], scale)
            torch._foreach_add_([moved[i] for i in together], [weights[i] for i in together])
    return [moved[i] for i in members]


def _is_wide(w: Tensor) -> bool:
    """Whether any scale is a number of the tensor's type; in float16 that of a vanishing gradient is not."""
    return w.dtype not in (torch.float16, torch.bfloat16)


def _by_scale_and_device(
    members: Sequence[int], scales: Sequence[Tensor], tensors: Sequence[Tensor]
) -> Iterator[tuple[Tensor, torch.device, Sequence[int]]]:
    """The members that share a scale and a device, with that scale on that device."""
    if members and len(set(map(id, scales))) == 1 and len({t.device for t in tensors}) == 1:
        groups = {(id(scales[0]), tensors[0].device): members}
    else:
        groups = {}
        for i in members:
            groups.setdefault((id(scales[i]), tensors[i].device), []).append(i)
    for (_, device), group in groups.items():
        yield scales[group[0]].to(device), device, group


def _layouts(values: Sequence[Tensor]) -> list[_Layout]:
    """What a buffer must share with a parameter to stand in for it; the size of the storage tells a view apart."""
    sizes = [v.untyped_storage().nbytes() for v in values]
    return list(zip(map(type, values), [v.dtype for v in values], [v.stride() for v in values], sizes, strict=True))


def _is_alone_in_its_storage(param: Tensor, w: Tensor) -> bool:
    """Whether the parameter is all there is in its memory, and this process's alone."""
    return (
        type(param) in (Tensor, torch.nn.Parameter)
        and w.numel() > 0
        and w.untyped_storage().nbytes() == w.numel() * w.element_size()
        and not (w.device.type == "cpu" and w.is_shared())
    )
