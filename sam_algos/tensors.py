"""Arithmetic on lists of tensors; the only file that knows ``torch._foreach``, DTensor and collectives.

Everything here treats a list of tensors as one long vector. Where parameters are sharded (DTensor), the lists
hold each rank's local shards and ``like`` names the parameters they belong to, so that norms and inner products
are those of the whole vector: a shard's own norm would be a silent error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["add_scaled_", "displaced", "dot", "local", "norm", "norms", "orthogonalize_", "reciprocal", "wrap_like"]

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


def norms(values: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """The L2 norm of each tensor, as one vector, accumulated in float32 or better."""
    first = values[0]
    dtype = torch.promote_types(_real_dtype(first), torch.float32)
    each = torch.stack([n.to(first.device) for n in torch._foreach_norm(list(values), 2, dtype=dtype)])
    return each if not _is_sharded(like) else _sum_over_shards(each.square(), like).sqrt()


def norm(values: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """``‖values‖``, the L2 norm of all tensors as one vector; a scalar tensor (zero for an empty list)."""
    return torch.linalg.vector_norm(norms(values, like)) if values else torch.zeros(())


def largest(values: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """``max |values|`` over all tensors as one vector; a scalar tensor."""
    peaks = [v.abs().max() if v.numel() else v.new_zeros((), dtype=_real_dtype(v)) for v in values]
    each = torch.stack([p.to(peaks[0].device) for p in peaks])
    return _sum_over_shards(each, like, dist.ReduceOp.MAX).max()


def dot(a: Sequence[Tensor], b: Sequence[Tensor], like: Sequence[Tensor]) -> Tensor:
    """``⟨a, b⟩`` over all tensors as one vector; a scalar tensor, accumulated in float32 or better."""
    if not a:
        return torch.zeros(())
    each = torch.stack([_dot(x, y).to(a[0].device) for x, y in zip(a, b, strict=True)])
    return _sum_over_shards(each, like).sum()


def reciprocal(scalar: Tensor) -> Tensor:
    """``1 / scalar`` for a norm: finite at zero, where what it scales is zero too; NaN stays NaN."""
    return scalar.clamp_min(TINY).reciprocal()


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


@contextmanager
def displaced(
    params: Sequence[Tensor],
    directions: Sequence[Tensor],
    scales: Sequence[float | Tensor],
    disposable: Sequence[bool],
) -> Iterator[None]:
    """Run the body at ``w + scale · direction``; afterwards every weight is what it was, bit for bit.

    The weights are kept aside before the first write and put back whatever the body does, an exception or a
    second KeyboardInterrupt included. Where a parameter owns its storage, the displaced weights are written into
    the direction's own buffer and the parameter is pointed at it: nothing is copied, and putting back is exact
    because the original was never touched. Elsewhere (shards, views, shared storage) the weights are copied
    aside and displaced in place.

    Args:
        params: The parameters ``w``.
        directions: This rank's part of the direction, one tensor like each parameter.
        scales: The factor of each direction.
        disposable: Whether each direction may be overwritten.
    """
    owned = _own_their_storage(params)
    kept = [p.data if own else local(p).clone() for p, own in zip(params, owned, strict=True)]

    def put_back() -> None:
        for p, own, w in zip(params, owned, kept, strict=True):
            if own:
                p.data = w
            else:
                local(p).copy_(w)

    try:
        for p, w, own, d, s, free in zip(params, kept, owned, directions, scales, disposable, strict=True):
            if own:
                p.data = _displace(w, d, s, d if free and _same_layout(w, d) else None)
            else:
                local(p).add_(d * s if isinstance(s, Tensor) else d, alpha=1 if isinstance(s, Tensor) else s)
        yield
    finally:
        try:
            put_back()
        except BaseException:
            put_back()
            raise


def _displace(w: Tensor, direction: Tensor, scale: float | Tensor, out: Tensor | None) -> Tensor:
    if w.device.type == "cpu":
        return torch.add(w, direction, alpha=float(scale), out=out)
    return torch.mul(direction, scale, out=out).add_(w)


def _own_their_storage(params: Sequence[Tensor]) -> list[bool]:
    """Which parameters may be pointed at another buffer without anybody else noticing."""
    seen: dict[int, int] = {}
    for p in params:
        pointer = 0 if isinstance(p, DTensor) else p.untyped_storage().data_ptr()
        seen[pointer] = seen.get(pointer, 0) + 1
    return [
        type(p) in (Tensor, torch.nn.Parameter)
        and p.layout is torch.strided
        and p.numel() > 0
        and p.untyped_storage().nbytes() == p.numel() * p.element_size()
        and seen[p.untyped_storage().data_ptr()] == 1
        and not (p.device.type == "cpu" and p.is_shared())
        for p in params
    ]


def _same_layout(w: Tensor, buffer: Tensor) -> bool:
    """Whether ``buffer`` can stand in for ``w``: same type and strides, and nobody else's memory."""
    return (
        type(buffer) is Tensor
        and buffer.dtype == w.dtype
        and buffer.device == w.device
        and buffer.stride() == w.stride()
        and buffer.untyped_storage().nbytes() == w.untyped_storage().nbytes()
        and not buffer.requires_grad
    )


def _real_dtype(tensor: Tensor) -> torch.dtype:
    return tensor.dtype.to_real() if tensor.is_complex() else tensor.dtype


def _dot(x: Tensor, y: Tensor) -> Tensor:
    if x.is_complex():
        x, y = torch.view_as_real(x), torch.view_as_real(y)
    if x.dtype in (torch.float32, torch.float64) and x.is_contiguous() and y.is_contiguous():
        return torch.dot(x.view(-1), y.view(-1))
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x.to(dtype) * y.to(dtype)).sum()


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
