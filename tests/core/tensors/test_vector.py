"""A vector with one tensor per parameter does the arithmetic of one long vector that is zero elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sam_algos import Vector

PARAMS = [torch.zeros(3, 2), torch.zeros(4), torch.zeros(()), torch.zeros(2, 1)]


def draw(members: list[int], seed: int) -> Vector:
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(PARAMS[i].shape, generator=generator, dtype=torch.float64) for i in members]
    return Vector([PARAMS[i] for i in members], values)


def long(vector: Vector) -> Tensor:
    """All parameters in order, zero where the vector has none."""
    there = {id(p): v for p, v in zip(vector.params, vector.values, strict=True)}
    return torch.cat([there.get(id(p), torch.zeros_like(p).double()).reshape(-1) for p in PARAMS])


MEMBERS = [
    ([0, 1, 2, 3], [0, 1, 2, 3]),
    ([0, 1, 2, 3], [3, 1, 0, 2]),
    ([0, 1], [1, 2]),
    ([2], [0, 1, 2, 3]),
    ([0, 1], [2, 3]),
    ([], [1]),
    ([1], []),
]
each_pair = pytest.mark.parametrize(("mine", "others"), MEMBERS, ids=str)


@each_pair
def test_sums_differences_and_products_are_those_of_the_union(mine: list[int], others: list[int]) -> None:
    a, b = draw(mine, 0), draw(others, 1)
    x, y = long(a), long(b)
    assert torch.equal(long(a + b), x + y)
    assert torch.equal(long(a - b), x - y)
    assert torch.equal(long(-a), -x)
    assert torch.equal(long(2.5 * a), 2.5 * x)
    assert torch.equal(long(a * torch.tensor(2.5)), 2.5 * x)
    assert torch.equal(long(a), x), "new vectors are made, and this one is as it was"
    assert torch.equal(long(b), y)


@each_pair
def test_the_inner_product_is_over_the_parameters_of_both(mine: list[int], others: list[int]) -> None:
    a, b = draw(mine, 0), draw(others, 1)
    torch.testing.assert_close(a.dot(b).double(), long(a) @ long(b))
    torch.testing.assert_close(a.norm().double(), long(a).norm())


@each_pair
def test_subtracting_from_another_makes_zeros_where_it_had_none(mine: list[int], others: list[int]) -> None:
    a, b = draw(mine, 0), draw(others, 1)
    expected = long(b) - 0.7 * long(a)
    assert a.subtract_from_(b, torch.tensor(0.7, dtype=torch.float64)) is a
    torch.testing.assert_close(long(a), expected)


WRITES = {
    "add_": lambda v: v.add_(draw([0, 3], 2), 0.5),
    "mul_": lambda v: v.mul_(3.0),
    "mul_ by a tensor": lambda v: v.mul_(torch.tensor(3.0)),
    "subtract_from_": lambda v: v.subtract_from_(draw([0, 1, 2], 2), torch.tensor(0.5)),
    "subtract_from_ aligned": lambda v: v.subtract_from_(draw([0, 1], 2), torch.tensor(0.5)),
}


@pytest.mark.parametrize("name", WRITES)
def test_the_norm_is_cached_until_a_write(name: str) -> None:
    a = draw([0, 1], 0)
    assert a.norm() is a.norm()
    before = float(a.norm())
    WRITES[name](a)
    torch.testing.assert_close(a.norm().double(), long(a).norm())
    assert float(a.norm()) != before


def test_writing_in_place_keeps_the_memory() -> None:
    a = draw([0, 1], 0)
    pointers = [v.data_ptr() for v in a.values]
    a.add_(draw([1, 2], 1)).mul_(2.0).subtract_from_(draw([0, 1, 2], 2), torch.tensor(1.0))
    assert [v.data_ptr() for v in a.values][:2] == pointers
    assert [p.shape for p in a.params] == [v.shape for v in a.values]


def test_a_copy_shares_no_memory_and_a_selection_shares_all() -> None:
    a = draw([0, 1, 2], 0)
    assert {v.data_ptr() for v in a.clone().values}.isdisjoint(v.data_ptr() for v in a.values)
    some = a.among([PARAMS[2], PARAMS[0], PARAMS[3]])
    assert [id(p) for p in some.params] == [id(PARAMS[0]), id(PARAMS[2])], "in this vector's order"
    assert [v.data_ptr() for v in some.values] == [a.values[0].data_ptr(), a.values[2].data_ptr()]


def test_a_selection_of_a_gradient_is_still_a_gradient_and_a_product_is_none() -> None:
    g = Vector(PARAMS, [p.clone() for p in PARAMS], is_gradient=True)
    assert g.among(PARAMS[:2]).is_gradient
    assert not (2.0 * g).is_gradient
    assert not g.clone().is_gradient
    assert not (g + g).is_gradient


def test_map_and_truth() -> None:
    a = draw([0, 1], 0)
    assert torch.equal(long(a.map(torch.sgn)), long(a).sgn())
    assert a
    assert not Vector([], [])
    assert float(Vector([], []).norm()) == 0
