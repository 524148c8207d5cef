"""Gradients as they lie on the parameters: taken in after a pass, put in place before the base optimizer steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from sam_algos.core.tensors import lists as tensors
from sam_algos.core.tensors import shards
from sam_algos.core.tensors.parameters import Names
from sam_algos.core.tensors.vector import Vector

__all__ = ["are_finite", "collect", "marks", "multiply_", "put_in_place", "stand_still"]


_LAYOUT, _VERSION = attrgetter("layout"), attrgetter("_version")


def collect(
    params: Sequence[Tensor],
    names: Names,
    *,
    owned: bool,
    maximized: Sequence[Tensor] = (),
    sharded: bool = False,
) -> Vector:
    """The gradients that a pass left on the parameters, of what the base optimizer minimises.

    Args:
        params: The optimizer's parameters; those without a gradient are left out.
        names: What the model calls them.
        owned: Whether each has to have memory of its own, because displaced weights may soon be put there.
        maximized: The parameters for which it maximises the loss, and so minimises minus the loss.
        sharded: Whether any parameter is sharded.

    Raises:
        ValueError: If one is sparse.
    """
    there = [p for p in params if p.grad is not None]
    grads: list[Any] = [p.grad for p in there]
    if not set(map(_LAYOUT, grads)) <= {torch.strided}:
        _refuse_sparse(there, grads, names)
    if maximized:
        multiply_(maximized, -1.0)
        grads = [p.grad for p in there]
    values = shards.local_parts(grads) if sharded else list(grads)
    if owned:
        tensors.own_(values, there)
        for p, value, g in zip(there, values, grads, strict=True):
            if value is not g and not (sharded and shards.is_sharded([p])):
                p.grad = value
    return Vector(there, values, is_gradient=True)


def _refuse_sparse(params: list[Tensor], grads: list[Any], names: Names) -> None:
    p, layout = next((p, g.layout) for p, g in zip(params, grads, strict=True) if g.layout is not torch.strided)
    raise ValueError(
        f"Parameter {names([p])[0].name!r} has a {layout} gradient; sharpness-aware steps need dense ones. "
        "Build the embedding with sparse=False."
    )


def marks(gradients: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Where gradients lie, and how often they were written into; of sharded ones give this rank's parts."""
    return list(zip(map(Tensor.data_ptr, gradients), map(_VERSION, gradients), strict=True))


def put_in_place(gradient: Vector, params: Iterable[Tensor]) -> None:
    """Lay a gradient on its parameters; the others have none."""
    for p in params:
        p.grad = None
    _lay(gradient.values, gradient.params)


def _lay(values: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    sharded = shards.is_sharded(params)
    for p, value in zip(params, values, strict=True):
        p.grad = shards.wrap_like(value, p) if sharded else value


def multiply_(params: Iterable[Tensor], factor: float | Tensor) -> None:
    """Multiply the gradients that lie on their parameters, in memory of their own, without waiting for the device."""
    there = [p for p in params if p.grad is not None]
    values = shards.local_parts([p.grad for p in there])
    tensors.own_(values, there)  # two parameters may share one
    tensors.scale_(values, factor)
    _lay(values, there)


def are_finite(params: Iterable[Tensor]) -> bool:
    """Whether the gradients that lie there are finite; where they are synchronised, the same on every process."""
    there = [p for p in params if p.grad is not None]
    norm = tensors.norm(shards.local_parts([p.grad for p in there]), there)
    return not there or bool(norm.isfinite())


def stand_still(groups: Sequence[dict[str, Any]]) -> bool:
    """Whether a step would move nothing: every learning rate is zero; where there is none, every gradient."""
    if all("lr" in group for group in groups):
        return all(float(group["lr"]) == 0 for group in groups)
    grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
    return not any(bool(shards.local(g).any()) for g in grads)
