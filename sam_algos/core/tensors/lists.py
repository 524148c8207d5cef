"""Arithmetic on lists of tensors, sharded ones too.

Everything here treats a list of tensors as one long vector. Where parameters are sharded (DTensor), the lists
hold each rank's local shards and ``like`` names the parameters they belong to, so that norms and inner products
are those of the whole vector: a shard's own norm would be a silent error.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from sam_algos.core.tensors.shards import is_sharded, sum_over_shards

__all__ = [
    "HostValue",
    "add_scaled_",
    "dot",
    "filter_norms",
    "in_memory_order",
    "largest",
    "norm",
    "norms",
    "orthogonalize_",
    "own_",
    "reciprocal",
    "scale_",
    "scaled",
    "square",
]

SMALL = 2048  # elements: up to here copying a tensor costs less than a call
CACHED = 131072  # elements: so many in all are still in a core's cache when they have been copied
FEW = 4  # scalars: so many are added in less time than they are stacked
_DTYPE, _IS_CPU = attrgetter("dtype"), attrgetter("is_cpu")
_DOTTED = {torch.float32, torch.float64}  # what torch.dot multiplies without losing digits
TINY = 1e-18  # a smaller norm may be what underflow has left: the square of 1e-19 is float32's smallest normal number


def own_(values: list[Tensor], like: Sequence[Tensor]) -> None:
    """Give each tensor of a list memory of its own, so that it may be written into or kept.

    Autograd lets two parameters share one gradient and conjugates lazily; a user may assign an expanded one; and
    those of DistributedDataParallel may be views of buckets that its next backward pass fills.
    """
    pointers, sharded = list(map(Tensor.data_ptr, values)), is_sharded(like)
    borrowed = True in map(Tensor.is_conj, values) or (not sharded and True in map(Tensor._is_view, values))
    if not borrowed and len(set(pointers)) == len(pointers):
        return
    foreign = [v.is_conj() if sharded else v._is_view() or v.is_conj() for v in values]
    seen: set[int] = set()
    for i, (value, pointer) in enumerate(zip(values, pointers, strict=True)):
        if foreign[i] or (pointer in seen and pointer != 0):
            dense = torch.contiguous_format if 0 in value.stride() else torch.preserve_format
            values[i] = value.resolve_conj().clone(memory_format=dense)
        seen.add(pointer)


def norms(values: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """The L2 norm of each tensor, as one vector, accumulated in float32 or better."""
    dtype = torch.float32
    for found in {v.dtype for v in values}:
        dtype = torch.promote_types(dtype, found.to_real())
    each = torch.stack(_together(torch._foreach_norm(_reals(values), 2, dtype=dtype)))
    return each if not is_sharded(like) else sum_over_shards(each.square(), like).sqrt()


def filter_norms(values: Tensor, like: Any) -> Tensor:
    """The L2 norm of each ``values[i]``, global over shards of it; broadcastable to ``values``."""
    each = torch.linalg.vector_norm(values, dim=tuple(range(1, values.ndim)), keepdim=True)
    if is_sharded([like]):
        for dim, placement in enumerate(like.placements):
            if placement.is_shard() and not placement.is_shard(0):
                each = each.square()
                dist.all_reduce(each, group=like.device_mesh.get_group(dim))
                each = each.sqrt()
    return each


def norm(values: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """``‖values‖``, the L2 norm of all tensors as one vector; a scalar tensor (zero for an empty list)."""
    if not values:
        return torch.zeros(())
    if set(map(_DTYPE, values)) <= _DOTTED and False not in map(_IS_CPU, values) and not is_sharded(like):
        return dot(values, values, ()).sqrt()
    return torch.linalg.vector_norm(norms(values, like))


def largest(values: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """``max |values|`` over all tensors as one vector; a scalar tensor."""
    peaks = [v.abs().max() if v.numel() else v.new_zeros((), dtype=v.dtype.to_real()) for v in values]
    each = torch.stack(_together(peaks))
    return sum_over_shards(each.to(torch.promote_types(each.dtype, torch.float32)), like, dist.ReduceOp.MAX).max()


def dot(a: Sequence[Tensor], b: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """``⟨a, b⟩`` over all tensors as one vector; a scalar tensor, accumulated in float32 or better."""
    if not a:
        return torch.zeros(())
    packed = _packed(a, like)
    pairs = zip(packed, packed if b is a else _packed(b, like), strict=True)
    each = [_inner(x, y) for x, y in pairs]
    if not like and len(each) == 1:
        return each[0]
    if not like and len(each) <= FEW:
        return sum(each[1:], start=each[0])
    return sum_over_shards(torch.stack(_together(each)), like).sum()


def square(value: Tensor) -> Tensor:
    """``‖value‖²`` of one tensor; a scalar tensor, accumulated in float32 or better."""
    return torch.dot(value, value) if value.ndim == 1 and value.dtype in _DOTTED else _inner(value, value)


def _inner(x: Tensor, y: Tensor) -> Tensor:
    if y is x and x.ndim == 1 and x.dtype in _DOTTED and x.is_contiguous():
        return torch.dot(x, x)
    if x.is_complex():
        x, y = torch.view_as_real(x), torch.view_as_real(y)
    if x.dtype == y.dtype and x.dtype in _DOTTED:
        flat = in_memory_order(x) if y is x else in_memory_order(x, y)
        if flat is not None:
            return torch.dot(flat[0], flat[-1])
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x.to(dtype) * y.to(dtype)).sum()


def _packed(values: Sequence[Tensor], like: Sequence[Tensor]) -> Sequence[Tensor]:
    """On a CPU, all the small tensors as one, whose copying costs less than a call for each."""
    if len(values) == 1 or (like and is_sharded(like)) or False in map(_IS_CPU, values):
        return values
    sizes = list(map(Tensor.numel, values))
    limit = SMALL if sum(sizes) > CACHED else CACHED
    small = [v for v, size in zip(values, sizes, strict=True) if size <= limit]
    if len(small) < 2:
        return values
    return [_flatten_dense_tensors(small), *(v for v, size in zip(values, sizes, strict=True) if size > limit)]


def in_memory_order(*alike: Tensor) -> list[Tensor] | None:
    """The tensors as vectors whose elements correspond, without a copy; None where they cannot be."""
    if all(t.is_contiguous() for t in alike):
        return [t.view(-1) for t in alike]
    if all(t.ndim == 4 and t.is_contiguous(memory_format=torch.channels_last) for t in alike):
        return [t.permute(0, 2, 3, 1).view(-1) for t in alike]
    return None


def reciprocal(scalar: Tensor, least: float = TINY) -> Tensor:
    """``1 / scalar`` for a norm: finite at zero, where what it scales vanishes too; NaN stays NaN."""
    return scalar.clamp_min(least).reciprocal()


class HostValue:
    """A scalar tensor on its way to the host; ``float()`` waits for it, and only for it."""

    def __init__(self, scalar: Tensor) -> None:
        self._scalar = scalar
        self._value: float | None = None
        self._arrived: Any = None
        if scalar.is_cuda:
            self._scalar = torch.empty_like(scalar, device="cpu", pin_memory=True).copy_(scalar, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(scalar.device))

    def __float__(self) -> float:
        if self._value is None:
            if self._arrived is not None:
                self._arrived.synchronize()
            self._value = float(self._scalar)
        return self._value


def scaled(values: Sequence[Tensor], scale: float | Tensor) -> list[Tensor]:
    """``scale · values``, without a host synchronisation."""
    if isinstance(scale, Tensor) and len({v.device for v in values}) > 1:
        return [v * scale.to(v.device) for v in values]
    if isinstance(scale, Tensor) and values:
        scale = scale.to(values[0].device)
    return list(torch._foreach_mul(list(values), scale)) if values else []


def scale_(values: Sequence[Tensor], scale: float | Tensor) -> None:
    """``values *= scale`` in place, without a host synchronisation."""
    if isinstance(scale, Tensor) and len({v.device for v in values}) > 1:
        for v in values:
            v.mul_(scale.to(v.device))
    elif values:
        torch._foreach_mul_(list(values), scale.to(values[0].device) if isinstance(scale, Tensor) else scale)


def add_scaled_(values: Sequence[Tensor], directions: Sequence[Tensor], scale: float | Tensor) -> None:
    """``values += scale · directions`` in place, without a host synchronisation."""
    if not values:
        return
    if isinstance(scale, Tensor) and values[0].device.type != "cpu":
        torch._foreach_add_(list(values), torch._foreach_mul(list(directions), scale))
    else:
        torch._foreach_add_(list(values), list(directions), alpha=float(scale))


def orthogonalize_(directions: Sequence[Tensor], values: Sequence[Tensor], scale: Tensor) -> None:
    """``directions = values - scale · directions`` in place, without a host synchronisation."""
    if directions[0].device.type != "cpu":
        torch._foreach_mul_(list(directions), -scale)
        torch._foreach_add_(list(directions), list(values))
        return
    alpha = -float(scale)
    for direction, value in zip(directions, values, strict=True):
        torch.add(value, direction, alpha=alpha, out=direction)


def _reals(values: Sequence[Tensor]) -> list[Tensor]:
    """Complex tensors as real ones of twice the size."""
    if not any({v.dtype.is_complex for v in values}):
        return list(values)
    return [torch.view_as_real(v) if v.is_complex() else v for v in values]


def _together(scalars: Sequence[Tensor]) -> list[Tensor]:
    """The scalars on one device, for models that span several."""
    device = scalars[0].device
    return list(scalars) if len({s.device for s in scalars}) == 1 else [s.to(device) for s in scalars]
