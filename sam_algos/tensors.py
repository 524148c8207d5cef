"""Arithmetic on lists of tensors; the only file that knows ``torch._foreach``, DTensor and collectives.

Everything here treats a list of tensors as one long vector. Where parameters are sharded (DTensor), the lists
hold each rank's local shards and ``like`` names the parameters they belong to, so that norms and inner products
are those of the whole vector: a shard's own norm would be a silent error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = [
    "HostValue",
    "add_scaled_",
    "dot",
    "filter_norms",
    "inner",
    "largest",
    "local",
    "norm",
    "norms",
    "orthogonalize_",
    "own_gradients_",
    "pieces",
    "reciprocal",
    "total",
    "wrap_like",
]

PIECE = 32768  # elements
TINY = 1e-30  # below any norm a training run can meet, above float32's smallest normal number


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor: the shard of a DTensor, anything else as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def wrap_like(shard: Tensor, like: Tensor) -> Tensor:
    """The inverse of `local`: ``shard`` as a tensor distributed like ``like``."""
    if not isinstance(like, DTensor):
        return shard
    return DTensor.from_local(
        shard, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def own_gradients_(params: Sequence[Tensor]) -> None:
    """Give a gradient memory of its own where autograd let two parameters share one, or conjugated it lazily."""
    seen: set[int] = set()
    for p in params:
        g = p.grad
        if g is None or g.layout is not torch.strided:
            continue
        pointer = local(g).data_ptr()
        if (pointer in seen and pointer != 0) or g.is_conj():
            p.grad = g.resolve_conj().clone()
        seen.add(pointer)


def norms(values: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """The L2 norm of each tensor, as one vector, accumulated in float32 or better."""
    reals = [torch.view_as_real(v) if v.is_complex() else v for v in values]
    dtype = torch.float32
    for found in {v.dtype for v in reals}:
        dtype = torch.promote_types(dtype, found)
    each = torch.stack(_together(torch._foreach_norm(reals, 2, dtype=dtype)))
    return each if not _is_sharded(like) else _sum_over_shards(each.square(), like).sqrt()


def filter_norms(values: Tensor, like: Tensor) -> Tensor:
    """The L2 norm of each ``values[i]``, global over shards of it; broadcastable to ``values``."""
    each = torch.linalg.vector_norm(values, dim=tuple(range(1, values.ndim)), keepdim=True)
    if isinstance(like, DTensor):
        for dim, placement in enumerate(like.placements):
            if placement.is_shard() and not placement.is_shard(0):
                each = each.square()
                dist.all_reduce(each, group=like.device_mesh.get_group(dim))
                each = each.sqrt()
    return each


def norm(values: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """``‖values‖``, the L2 norm of all tensors as one vector; a scalar tensor (zero for an empty list)."""
    return torch.linalg.vector_norm(norms(values, like)) if values else torch.zeros(())


def largest(values: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """``max |values|`` over all tensors as one vector; a scalar tensor."""
    peaks = [v.abs().max() if v.numel() else v.new_zeros((), dtype=v.dtype.to_real()) for v in values]
    each = torch.stack(_together(peaks))
    return _sum_over_shards(each.to(torch.promote_types(each.dtype, torch.float32)), like, dist.ReduceOp.MAX).max()


def dot(a: Sequence[Tensor], b: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """``⟨a, b⟩`` over all tensors as one vector; a scalar tensor, accumulated in float32 or better."""
    return total([inner(x, y) for x, y in zip(a, b, strict=True)], like)


def total(each: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """The sum of one scalar per tensor, completed over shards; a scalar tensor (zero for an empty list)."""
    return _sum_over_shards(torch.stack(_together(each)), like).sum() if each else torch.zeros(())


def inner(x: Tensor, y: Tensor) -> Tensor:
    """``⟨x, y⟩`` of two tensors, or of their local parts; a scalar tensor, accumulated in float32 or better."""
    if x.is_complex():
        x, y = torch.view_as_real(x), torch.view_as_real(y)
    if x.dtype in (torch.float32, torch.float64) and x.is_contiguous() and y.is_contiguous():
        return torch.dot(x.view(-1), y.view(-1))
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x.to(dtype) * y.to(dtype)).sum()


def pieces(*alike: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Corresponding pieces of tensors that are alike, each small enough to stay in a CPU's cache.

    A chain of elementwise operations, done piece by piece, then reads and writes memory once. Elsewhere than on a
    CPU, and where the elements do not lie in order, the one piece is the whole.
    """
    if alike[0].device.type == "cpu" and all(t.is_contiguous() for t in alike) and alike[0].numel() > PIECE:
        yield from zip(*(t.view(-1).split(PIECE) for t in alike), strict=True)
    else:
        yield alike


def reciprocal(scalar: Tensor) -> Tensor:
    """``1 / scalar`` for a norm: finite at zero, where what it scales is zero too; NaN stays NaN."""
    return scalar.clamp_min(TINY).reciprocal()


class HostValue:
    """A scalar tensor on its way to the host; ``float()`` waits for it, and only for it."""

    def __init__(self, scalar: Tensor) -> None:
        self._scalar = scalar
        self._arrived: Any = None
        if scalar.is_cuda:
            self._scalar = torch.empty_like(scalar, device="cpu", pin_memory=True).copy_(scalar, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(scalar.device))

    def __float__(self) -> float:
        if self._arrived is not None:
            self._arrived.synchronize()
        return float(self._scalar)


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


def _together(scalars: Sequence[Tensor]) -> list[Tensor]:
    """The scalars on one device, for models that span several."""
    device = scalars[0].device
    return [s if s.device == device else s.to(device) for s in scalars]


def _is_sharded(like: Sequence[Tensor]) -> bool:
    return any(isinstance(p, DTensor) for p in like)


def _sum_over_shards(each: Tensor, like: Sequence[Tensor], op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Complete per-tensor sums over the ranks that hold the other shards of each tensor."""
    groups: dict[tuple, list[int]] = {}
    for i, p in enumerate(like):
        if isinstance(p, DTensor):
            sharded = tuple(dim for dim, placement in enumerate(p.placements) if placement.is_shard())
            groups.setdefault((p.device_mesh, sharded), []).append(i)
    for (mesh, sharded), members in groups.items():
        part = each[members]
        for dim in sharded:
            dist.all_reduce(part, op=op, group=mesh.get_group(dim))
        each[members] = part
    return each
