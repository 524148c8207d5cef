"""Arithmetic on one tensor per parameter, as on one long vector."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from sam_algos.core.tensors import lists as tensors

__all__ = ["Vector"]


class Vector:
    """One tensor for each of some parameters, as one long vector; it is zero at all others.

    ``a + b``, ``a - b``, ``scalar * a`` and ``-a`` make new vectors, with scalars that are Python numbers or scalar
    tensors; methods that end in an underscore write into this one. With sharded parameters the tensors are this
    rank's shards, while `norm` and `dot` are those of the whole vector.

    Args:
        params: The parameters.
        values: One tensor like each.

    Attributes:
        params (list[Tensor]): The parameters.
        values (list[Tensor]): One tensor like each.
        is_gradient (bool): Whether the tensors are a pass's own, which the step may reuse when nobody reads them.
    """

    __slots__ = ("_norm", "is_gradient", "params", "values")

    def __init__(self, params: Sequence[Tensor], values: Sequence[Tensor], *, is_gradient: bool = False) -> None:
        self.params = params if isinstance(params, list) else list(params)
        self.values = values if isinstance(values, list) else list(values)
        self.is_gradient = is_gradient
        self._norm: Tensor | None = None

    def norm(self) -> Tensor:
        """The Euclidean norm, over all shards; a scalar tensor that stays on its device."""
        if self._norm is None:
            self._norm = tensors.norm(self.values, self.params)
        return self._norm

    def dot(self, other: Vector) -> Tensor:
        """The inner product, over all shards; a scalar tensor that stays on its device."""
        mine, others, params = self.values, other.values, self.params
        if not self._is_aligned_with(other):
            there = dict(zip(map(id, other.params), other.values, strict=True))
            both = [(v, there[id(p)], p) for p, v in zip(params, mine, strict=True) if id(p) in there]
            mine, others, params = ([item[k] for item in both] for k in range(3))
        return tensors.dot(mine, others, params)

    def among(self, params: Collection[Tensor]) -> Vector:
        """The same at these parameters, and zero at the others."""
        chosen = set(map(id, params))
        pairs = [(p, v) for p, v in zip(self.params, self.values, strict=True) if id(p) in chosen]
        return Vector([p for p, _ in pairs], [v for _, v in pairs], is_gradient=self.is_gradient)

    def clone(self) -> Vector:
        """A copy."""
        return Vector(self.params, [v.clone() for v in self.values])

    def add_(self, other: Vector, scale: float | Tensor = 1.0) -> Vector:
        """``self += scale · other``."""
        here = self._with_params_of(other)
        tensors.add_scaled_(here, other.values, scale)
        self._norm = None
        return self

    def mul_(self, scale: float | Tensor) -> Vector:
        """``self *= scale``."""
        tensors.scale_(self.values, scale)
        self._norm = None
        return self

    def subtract_from_(self, other: Vector, scale: Tensor) -> Vector:
        """``self = other - scale · self``."""
        others = self._with_params_of(other)  # where this one was zero, it has a zero now
        if len(others) == len(self.params):
            tensors.orthogonalize_(others, other.values, scale)
        else:
            self.mul_(-scale)
            tensors.add_scaled_(others, other.values, 1.0)
        self._norm = None
        return self

    def __bool__(self) -> bool:
        """Whether it has any parameter."""
        return bool(self.params)

    def __add__(self, other: Vector) -> Vector:
        return self.clone().add_(other)

    def __sub__(self, other: Vector) -> Vector:
        return self.clone().add_(other, -1.0)

    def __mul__(self, scale: float | Tensor) -> Vector:
        return Vector(self.params, tensors.scaled(self.values, scale))

    __rmul__ = __mul__

    def __neg__(self) -> Vector:
        return self * -1.0

    def map(self, function: Callable[[Tensor], Tensor]) -> Vector:
        """A function of each tensor."""
        return Vector(self.params, [function(v) for v in self.values])

    def _is_aligned_with(self, other: Vector) -> bool:
        mine, others = self.params, other.params
        return mine is others or (len(mine) == len(others) and all(a is b for a, b in zip(mine, others, strict=True)))

    def _with_params_of(self, other: Vector) -> list[Any]:
        """The tensors at the other's parameters, in its order; zeros are made where this vector had none."""
        if self._is_aligned_with(other):
            return self.values
        here = dict(zip(map(id, self.params), self.values, strict=True))
        if missing := [(p, v) for p, v in zip(other.params, other.values, strict=True) if id(p) not in here]:
            made = [torch.zeros_like(v) for _, v in missing]
            self.params, self.values = [*self.params, *(p for p, _ in missing)], [*self.values, *made]
            here |= {id(p): value for (p, _), value in zip(missing, made, strict=True)}
        return [here[id(p)] for p in other.params]
