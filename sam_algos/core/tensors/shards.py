"""Sharded tensors (DTensor): this rank's part of them, and what completes it, or makes it equal, over the ranks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

__all__ = [
    "Processes",
    "is_sharded",
    "local",
    "local_parts",
    "mean_over_processes",
    "normal_like",
    "sum_over_shards",
    "wrap_like",
]

_PLAIN = {Tensor, torch.nn.Parameter}


def _sharded_type() -> Any:
    """The class of sharded tensors, ``DTensor``; none where its module, which takes half a second, was not imported."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor: the shard of a DTensor, anything else as it is."""
    return tensor.to_local() if is_sharded([tensor]) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def wrap_like(shard: Tensor, like: Tensor) -> Tensor:
    """The inverse of `local`: ``shard`` as a tensor distributed like ``like``."""
    if not is_sharded([like]):
        return shard
    distributed: Any = like
    return _sharded_type().from_local(
        shard,
        distributed.device_mesh,
        distributed.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def local_parts(values: Sequence[Any]) -> list[Any]:
    """This rank's part of each tensor; None stays None."""
    return [local(v) for v in values] if is_sharded(values) else list(values)


def is_sharded(like: Sequence[Any]) -> bool:
    """Whether any of them is a DTensor."""
    kinds = set(map(type, like))
    return not kinds <= _PLAIN and any(issubclass(kind, _sharded_type()) for kind in kinds)


def sum_over_shards(each: Tensor, like: Sequence[Tensor], op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Complete per-tensor sums over the ranks that hold the other shards of each tensor."""
    groups: dict[tuple, list[int]] = {}
    p: Any
    for i, p in enumerate(like if is_sharded(like) else ()):
        if is_sharded([p]):
            sharded = tuple(dim for dim, placement in enumerate(p.placements) if placement.is_shard())
            groups.setdefault((p.device_mesh, sharded), []).append(i)
    for (mesh, sharded), members in groups.items():
        part = each[members]
        for dim in sharded:
            dist.all_reduce(part, op=op, group=mesh.get_group(dim))
        each[members] = part
    return each


class Processes:
    """The processes that run the passes of a model together, as far as its parts say: DDP's, and those of shards.

    Args:
        model: The model.
        params: Parameters of it.

    Attributes:
        alone (bool): Whether this process is the only one.
        unknown (bool): Whether there are others of which the model says nothing: it may be a DDP model's ``module``,
            or its program synchronises by itself.
    """

    def __init__(self, model: torch.nn.Module, params: Sequence[Tensor]) -> None:
        replicated = [m.process_group for m in model.modules() if isinstance(m, DistributedDataParallel)]
        sharded: list[Any] = [p for p in params if is_sharded([p])]
        meshes = {p.device_mesh for p in sharded}
        self._groups = [*replicated, *(mesh.get_group(dim) for mesh in meshes for dim in range(mesh.ndim))]
        self._device = local(params[0]).device if params else torch.device("cpu")
        self.alone = not self._groups
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.unknown = self.alone and several

    def all(self, here: Sequence[bool]) -> list[bool]:
        """What holds on each of them. All have to ask, for as many things."""
        return self._reduced(here, dist.ReduceOp.MIN)

    def any(self, here: Sequence[bool]) -> list[bool]:
        """What holds on one of them at least. All have to ask, for as many things."""
        return self._reduced(here, dist.ReduceOp.MAX)

    def _reduced(self, here: Sequence[bool], op: dist.ReduceOp.RedOpType) -> list[bool]:
        if self.alone:
            return list(here)
        there = torch.tensor(here, dtype=torch.int32, device=self._device)
        for group in self._groups:
            dist.all_reduce(there, op=op, group=group)
        return [bool(value) for value in there.tolist()]


def mean_over_processes(values: Sequence[float], device: torch.device) -> list[float]:
    """The mean of each number over all processes, the same on each of them; all have to call it."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return (total / dist.get_world_size()).tolist()


def normal_like(p: Any, generator: torch.Generator) -> Tensor:
    """Standard normal numbers like ``p``: of a sharded one, this rank's part of what all ranks draw alike."""
    drawn = torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device)
    if not is_sharded([p]):
        return drawn
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(p.shape, p.device_mesh, p.placements)
    return drawn[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))].clone()
