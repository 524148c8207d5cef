"""Moving the weights to the perturbed point and back, exactly and with as few bytes as can be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["Displacement"]


class Displacement:
    """Moves weights to ``w + scale · direction`` and back; one per optimizer.

    Where a parameter owns its storage, the displaced weights are written into the direction's own buffer and the
    parameter is pointed at it: nothing is copied aside, and going back is exact because the original was never
    touched. Elsewhere (shards, views, shared storage) the weights are copied aside and displaced in place. All
    it remembers between steps is which parameters own their storage.
    """

    def __init__(self) -> None:
        self._pointers: list[int] = []
        self._owned: list[bool] = []

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
        owned = self._own_their_storage(params, weights)
        kept = [w if own else w.clone() for w, own in zip(weights, owned, strict=True)]

        def put_back() -> None:
            for p, w, own, original in zip(params, weights, owned, kept, strict=True):
                if own:
                    p.data = original
                else:
                    w.copy_(original)

        reuse = [
            own and free and _same_layout(w, d)
            for own, free, w, d in zip(owned, disposable, weights, directions, strict=True)
        ]
        try:
            moved = _displaced(weights, directions, scales, reuse)
            for p, w, own, displaced in zip(params, weights, owned, moved, strict=True):
                if own:
                    p.data = displaced
                else:
                    w.copy_(displaced)
            del moved
            yield
        finally:
            try:
                put_back()
            except BaseException:
                put_back()
                raise

    def _own_their_storage(self, params: Sequence[Tensor], weights: Sequence[Tensor]) -> list[bool]:
        """Which parameters may be pointed at another buffer without anybody else noticing."""
        pointers = [w.data_ptr() for w in weights]
        if pointers != self._pointers:
            holders = Counter(pointers)
            self._owned = [
                type(p) in (Tensor, torch.nn.Parameter) and _fills_its_storage(w) and holders[pointer] == 1
                for p, w, pointer in zip(params, weights, pointers, strict=True)
            ]
            self._pointers = pointers
        return self._owned


def _displaced(
    weights: Sequence[Tensor], directions: Sequence[Tensor], scales: Sequence[Tensor], reuse: Sequence[bool]
) -> list[Tensor]:
    """``w + scale · direction`` of each, into the direction's own buffer where ``reuse`` says so."""
    moved = list(directions)
    for scale, device, members in _by_scale_and_device(scales, weights):
        if device.type == "cpu":  # one pass over memory, and reading the scale waits for nothing
            alpha = float(scale)
            for i in members:
                moved[i] = torch.add(weights[i], directions[i], alpha=alpha, out=directions[i] if reuse[i] else None)
            continue
        in_place, fresh = [i for i in members if reuse[i]], [i for i in members if not reuse[i]]
        scale = scale.to(device)
        if in_place:
            torch._foreach_mul_([directions[i] for i in in_place], scale)
        if fresh:
            scaled = torch._foreach_mul([directions[i] for i in fresh], scale)
            for i, tensor in zip(fresh, scaled, strict=True):
                moved[i] = tensor
        torch._foreach_add_([moved[i] for i in members], [weights[i] for i in members])
    return moved


def _by_scale_and_device(
    scales: Sequence[Tensor], tensors: Sequence[Tensor]
) -> Iterator[tuple[Tensor, torch.device, list[int]]]:
    groups: dict[tuple[int, torch.device], list[int]] = {}
    for i, (scale, tensor) in enumerate(zip(scales, tensors, strict=True)):
        groups.setdefault((id(scale), tensor.device), []).append(i)
    for (_, device), members in groups.items():
        yield scales[members[0]], device, members


def _fills_its_storage(w: Tensor) -> bool:
    """Whether the tensor is all there is in its memory, and this process's alone."""
    return (
        w.numel() > 0
        and w.untyped_storage().nbytes() == w.numel() * w.element_size()
        and not (w.device.type == "cpu" and w.is_shared())
    )


def _same_layout(w: Tensor, buffer: Tensor) -> bool:
    """Whether ``buffer`` can stand in for ``w``: same type and strides, and nobody else's memory."""
    return (
        buffer.dtype is w.dtype
        and buffer.stride() == w.stride()
        and buffer.untyped_storage().nbytes() == w.untyped_storage().nbytes()
        and not buffer.requires_grad
        and type(buffer) is Tensor
    )
