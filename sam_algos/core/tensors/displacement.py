"""Moving the weights to the perturbed point and back, exactly and with as few bytes as can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from sam_algos.core.profiling import within
from sam_algos.core.tensors.shards import local, local_parts

__all__ = ["Displaced", "Displacement"]

SMALL = 8192  # elements; up to here a call costs more than memory does
_WIDE = (torch.float32, torch.float64)  # hold any scale; in float16 that of a vanishing gradient is no number


class Displacement:
    """Makes `Displaced` points; one per optimizer. All it remembers is how parameters are stored.

    Args:
        elsewhere: Gives tensors that may share memory with a parameter: the model's buffers and its other parameters.
    """

    def __init__(self, elsewhere: Callable[[], Iterable[Tensor]] = tuple) -> None:
        self._elsewhere = elsewhere
        self._storage = _Storage([], [], [])
        self._alone: dict[int, bool] = {}  # by address, of all parameters that have moved

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
        weights = local_parts([p.data for p in params])
        if list(map(Tensor.data_ptr, weights)) != self._storage.pointers:
            addresses = [w.untyped_storage().data_ptr() for w in weights]
            if not self._alone.keys() >= set(addresses):
                everything = {id(t): t for t in (*self._elsewhere(), *params)}.values()
                holders = Counter(local(t.data).untyped_storage().data_ptr() for t in everything)
                self._alone = {address: count == 1 for address, count in holders.items()}
            self._storage = _Storage(params, weights, [self._alone[address] for address in addresses])
        return Displaced(params, weights, directions, scales, self._storage, disposable)


class _Storage:
    """How parameters are stored.

    Attributes:
        pointers: Where.
        own: Those that may be pointed at another buffer without anybody else noticing, by number.
        rest: The others.
        small: Those of ``own`` that a CPU displaces into new memory.
        large: Those that it displaces into their direction's.
        at_once: Whether it can do so in one pass over memory.
    """

    def __init__(self, params: Sequence[Tensor], weights: Sequence[Tensor], alone: Sequence[bool]) -> None:
        self.pointers = [w.data_ptr() for w in weights]
        pairs = list(zip(params, weights, alone, strict=True))
        self.own = [i for i, (p, w, only) in enumerate(pairs) if only and _is_alone_in_its_storage(p, w)]
        self.rest = sorted(set(range(len(pairs))).difference(self.own))
        self.at_once = all(w.is_cpu and w.dtype in _WIDE for w in weights)
        self.small = [i for i in self.own if weights[i].numel() <= SMALL]
        self.large = sorted(set(self.own).difference(self.small))


class Displaced:
    """The weights at one displaced point: within ``with displaced:`` they are there, and nowhere else.

    Where a parameter owns its storage, the displaced weights are written into a buffer of their own (the direction's,
    where that may be overwritten) and the parameter is pointed at it: nothing is copied aside, and going back is exact
    because the original was never touched. Elsewhere (shards, views, shared storage) the weights are copied aside and
    displaced in place. Afterwards every weight is what it was, bit for bit, whatever the body does: raise an
    exception, or be interrupted, even twice. It may be entered again.

    To autograd both ways are changes in place: a graph that has saved the weights of before can no longer be used.

    Attributes:
        params (Sequence[Tensor]): The parameters that move.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        weights: list[Tensor],
        directions: Sequence[Tensor],
        scales: Sequence[Tensor],
        storage: _Storage,
        disposable: bool,
    ) -> None:
        self.params, self._weights, self._scales = params, weights, scales
        self._directions: Sequence[Tensor] = directions
        self._storage, self._disposable = storage, disposable
        self._moved: list[Tensor] | None = None
        self._aside: list[Tensor] = []

    def __enter__(self) -> None:
        try:
            within("sam/displace", self._displace)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            within("sam/restore", self._put_back)
        except BaseException:
            self._put_back()
            raise

    def stands_still(self, params: Sequence[Tensor]) -> bool:
        """Whether the direction is zero at these parameters, as long as it is known: until the weights were there."""
        at = set(map(id, params))
        known = bool(self._directions)
        return known and not any(d.any() for p, d in zip(self.params, self._directions, strict=True) if id(p) in at)

    def _displace(self) -> None:
        weights = self._weights
        own, rest = self._storage.own, self._storage.rest
        self._aside = [weights[i].clone() for i in rest] if rest else []
        if self._moved is None:
            self._moved = self._make(weights)
            if not rest:
                self._directions = ()  # their memory is free, or holds the displaced weights
        for i, displaced in zip(own, self._moved, strict=True):
            self.params[i].data = displaced
        if rest:
            _displace_in_place(rest, weights, self._directions, self._scales)
        increment_version(self.params)

    def _put_back(self) -> None:
        for i in self._storage.own:
            self.params[i].data = self._weights[i]
        for i, original in zip(self._storage.rest, self._aside, strict=False):  # none, if nothing moved yet
            self._weights[i] = local(self.params[i].data)  # FSDP2 lays shards elsewhere in its first forward
            self._weights[i].copy_(original)
        increment_version(self.params)

    def _make(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """``w + scale · direction`` of each that owns its storage."""
        moved, storage = list(self._directions), self._storage
        if storage.at_once and len(set(map(id, self._scales))) <= 1:
            self._add_at_once(moved, float(self._scales[0]) if storage.own else 0.0)
            return [moved[i] for i in storage.own]
        # A few calls however many tensors, and the scale stays on its device.
        for scale, _, group in _by_scale_and_device(storage.own, self._scales, weights):
            if fresh := [i for i in group if not self._may_reuse(i)]:
                buffers = [torch.empty_like(weights[i]) for i in fresh]
                torch._foreach_copy_(buffers, [moved[i] for i in fresh])
                for i, buffer in zip(fresh, buffers, strict=True):
                    moved[i] = buffer
            torch._foreach_mul_([moved[i] for i in group], scale)
            torch._foreach_add_([moved[i] for i in group], [weights[i] for i in group])
        return [moved[i] for i in storage.own]

    def _add_at_once(self, moved: list[Tensor], scale: float) -> None:
        """Where the scale is at hand: large tensors into their direction, small ones anew, which takes fewer calls."""
        weights, small, large = self._weights, self._storage.small, self._storage.large
        here, there = [weights[i] for i in small], [moved[i] for i in small]
        if list(map(Tensor.stride, here)) != list(map(Tensor.stride, there)):
            small, large = [], self._storage.own
        if small:
            made = torch._foreach_add(here, there, alpha=scale)
            for i, displaced in zip(small, made, strict=True):
                moved[i] = displaced
        for i in large:
            out = moved[i] if self._may_reuse(i) else None
            moved[i] = torch.add(weights[i], moved[i], alpha=scale, out=out)

    def _may_reuse(self, i: int) -> bool:
        """Whether the direction's memory can stand in for the parameter's."""
        return self._disposable and _layout(self._directions[i]) == _layout(self._weights[i])


def _displace_in_place(
    members: Sequence[int], weights: Sequence[Tensor], directions: Sequence[Tensor], scales: Sequence[Tensor]
) -> None:
    """``w += scale · direction``, one member after the other, so that parameters which share memory add up."""
    for scale, _, group in _by_scale_and_device(members, scales, weights):
        scaled = torch._foreach_mul([directions[i] for i in group], scale)
        torch._foreach_add_([weights[i] for i in group], scaled)


def _by_scale_and_device(
    members: Sequence[int], scales: Sequence[Tensor], tensors: Sequence[Tensor]
) -> Iterator[tuple[Tensor, torch.device, Sequence[int]]]:
    """The members that share a scale and a device, with that scale on that device."""
    groups: dict[tuple[int, torch.device], list[int]] = {}
    for i in members:
        groups.setdefault((id(scales[i]), tensors[i].device), []).append(i)
    for (_, device), group in groups.items():
        yield scales[group[0]].to(device), device, group


def _layout(value: Tensor) -> tuple[type, torch.dtype, tuple[int, ...], int]:
    """What a buffer must share with a parameter to stand in for it; the size of the storage tells a view apart."""
    return type(value), value.dtype, value.stride(), value.untyped_storage().nbytes()


def _is_alone_in_its_storage(param: Tensor, w: Tensor) -> bool:
    """Whether the parameter is all there is in its memory, and this process's alone."""
    return (
        type(param) in (Tensor, torch.nn.Parameter)
        and w.numel() > 0
        and w.untyped_storage().nbytes() == w.numel() * w.element_size()
        and not (w.device.type == "cpu" and w.is_shared())
    )
