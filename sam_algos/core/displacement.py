"""Moving the weights to the perturbed point and back, exactly and with as few bytes as can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from sam_algos.core.tensors import local, shards

__all__ = ["Displaced", "Displacement"]

SMALL = 8192  # elements; up to here a call costs more than a second pass over a tensor that is still in cache

_Layout = tuple[type, torch.dtype, tuple[int, ...], int]


class Displacement:
    """Makes `Displaced` points; one per optimizer. All it remembers is which parameters own their storage.

    Args:
        elsewhere: Gives tensors that may share memory with a parameter: the model's buffers and its other parameters.
    """

    def __init__(self, elsewhere: Callable[[], Iterable[Tensor]] = tuple) -> None:
        self._elsewhere = elsewhere
        self._known: dict[int, tuple[int, _Layout | None]] = {}  # by parameter: where it lay, and how if alone

    def __call__(
        self,
        params: Sequence[Tensor],
        directions: Sequence[Tensor],
        scales: Sequence[Tensor],
        disposable: bool = False,
    ) -> Displaced:
        """The point ``w + scale · direction``.

        Args:
            params: The parameters that move.
            directions: This rank's part of the direction of each.
            scales: The factor of each direction, a scalar tensor.
            disposable: Whether the directions may be overwritten.
        """
        weights = shards([p.data for p in params])
        layouts = self._own_layouts(params, weights)
        found = zip(_layouts(directions), layouts, strict=True)
        reuse = [disposable and direction == layout for direction, layout in found]
        return Displaced(params, weights, directions, scales, [layout is not None for layout in layouts], reuse)

    def _own_layouts(self, params: Sequence[Tensor], weights: Sequence[Tensor]) -> list[_Layout | None]:
        """The layout of each parameter that may be pointed at another buffer without anybody else noticing."""
        pointers = [w.data_ptr() for w in weights]
        known = [self._known.get(id(p), (None, None)) for p in params]
        if any([pointer != there for pointer, (there, _) in zip(pointers, known, strict=True)]):
            everything = {id(t): t for t in (*self._elsewhere(), *params)}.values()
            holders = Counter(local(t.data).untyped_storage().data_ptr() for t in everything)
            layouts = zip(params, weights, _layouts(weights), pointers, strict=True)
            alone = [
                layout if holders[pointer] == 1 and _is_alone_in_its_storage(p, w) else None
                for p, w, layout, pointer in layouts
            ]
            self._known |= {id(p): found for p, *found in zip(params, pointers, alone, strict=True)}
            return alone
        return [layout for _, layout in known]


class Displaced:
    """The weights at one displaced point: within ``with displaced:`` they are there, and nowhere else.

    Where a parameter owns its storage, the displaced weights are written into a buffer of their own (the direction's,
    where that may be overwritten) and the parameter is pointed at it: nothing is copied aside, and going back is exact
    because the original was never touched. Elsewhere (shards, views, shared storage) the weights are copied aside and
    displaced in place. Afterwards every weight is what it was, bit for bit, whatever the body does: raise an
    exception, or be interrupted, even twice. It may be entered again.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        weights: Sequence[Tensor],
        directions: Sequence[Tensor],
        scales: Sequence[Tensor],
        owned: Sequence[bool],
        reuse: Sequence[bool],
    ) -> None:
        self._params, self._weights, self._scales = params, weights, scales
        self._directions: Sequence[Tensor] = directions
        self._own = [i for i, own in enumerate(owned) if own]
        self._rest = [i for i, own in enumerate(owned) if not own]
        self._reuse = reuse
        self._moved: list[Tensor] | None = None
        self._aside: list[Tensor] = []

    def __enter__(self) -> None:
        weights, scales = self._weights, self._scales
        self._aside = [weights[i].clone() for i in self._rest]
        try:
            if self._moved is None:
                self._moved = _displaced(self._own, weights, self._directions, scales, self._reuse)
                if not self._rest:
                    self._directions = ()  # their memory is free, or holds the displaced weights
            for i, displaced in zip(self._own, self._moved, strict=True):
                self._params[i].data = displaced
            _displace_in_place(self._rest, weights, self._directions, scales)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self._put_back()
        except BaseException:
            self._put_back()
            raise

    def _put_back(self) -> None:
        for i in self._own:
            self._params[i].data = self._weights[i]
        for i, original in zip(self._rest, self._aside, strict=True):
            self._weights[i].copy_(original)


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
