"""Arithmetic on lists of tensors against the same arithmetic on one long vector."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sam_algos.core.tensors import lists as tensors
from sam_algos.core.tensors.blocks import BLOCK, blocks

TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-6, torch.float16: 1e-6}
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "one": [(5,)],
    "several": [(3, 4), (7,), (2, 3, 1, 2)],
    "scalar": [(), (4,)],
    "empty among others": [(0, 3), (5,), (0,)],
    "empty last": [(2, 2), (0,)],
}
TYPES: dict[str, list[torch.dtype]] = {
    "float64": [torch.float64],
    "float32": [torch.float32],
    "bfloat16": [torch.bfloat16],
    "float16": [torch.float16],
    "complex64": [torch.complex64],
    "bfloat16 and float32": [torch.bfloat16, torch.float32],
    "float32 and complex64": [torch.float32, torch.complex64],
    "float32 and float64": [torch.float32, torch.float64],
}


def draw(shapes: list[tuple[int, ...]], dtypes: list[torch.dtype], seed: int) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(shape, dtype=dtypes[i % len(dtypes)]) for i, shape in enumerate(shapes)]


def vector(values: list[Tensor]) -> Tensor:
    """All values as one real vector in float64."""
    parts = [torch.view_as_real(v) if v.is_complex() else v for v in values]
    return torch.cat([p.double().reshape(-1) for p in parts])


# Every shape in one type and in two, and every type in several tensors, among them empty ones.
LISTS = [(shape, dtypes) for shape in SHAPES for dtypes in ("float32", "bfloat16 and float32")]
LISTS += [(shape, dtypes) for shape in ("several", "empty among others") for dtypes in TYPES]
LISTS = list(dict.fromkeys(LISTS))
each_list = pytest.mark.parametrize(
    ("shapes", "dtypes"), [(SHAPES[s], TYPES[t]) for s, t in LISTS], ids=[f"{s}, {t}" for s, t in LISTS]
)


def assert_close(ours: Tensor, truth: Tensor) -> None:
    assert ours.shape == ()
    assert not ours.is_complex()
    assert ours.dtype in (torch.float32, torch.float64), "accumulated in float32 or better"
    assert float(ours) == pytest.approx(float(truth), rel=1e-6, abs=1e-6)


@each_list
def test_norm_and_dot_are_those_of_one_vector(shapes: list, dtypes: list) -> None:
    a, b = draw(shapes, dtypes, 0), draw(shapes, dtypes, 1)
    assert_close(tensors.norm(a, a), vector(a).norm())
    assert_close(tensors.dot(a, b, a), vector(a) @ vector(b))
    for ours, value in zip(tensors.norms(a, a).unbind(), a, strict=True):
        assert_close(ours, vector([value]).norm())


@each_list
def test_largest_is_that_of_one_vector(shapes: list, dtypes: list) -> None:
    a = draw(shapes, dtypes, 0)
    assert float(tensors.largest(a, a)) == max(float(v.abs().max()) for v in a if v.numel())


def test_nothing_has_norm_zero() -> None:
    assert tensors.norm([], []).item() == 0
    assert tensors.dot([], [], []).item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_accumulated_in_float32(dtype: torch.dtype) -> None:
    """In its own precision the sum of these would stand still early, or overflow."""
    ones = [torch.full((100_000,), 3.0, dtype=dtype)] * 2
    assert tensors.norm(ones, ones).item() == pytest.approx(math.sqrt(1.8e6), rel=1e-5)
    assert tensors.dot(ones, ones, ones).item() == pytest.approx(1.8e6, rel=1e-5)


@pytest.mark.parametrize("transposed", [False, True], ids=["same strides", "other strides"])
def test_dot_pairs_elements_by_index(transposed: bool) -> None:
    a, b = torch.randn(3, 4), torch.randn(4, 3).t() if transposed else torch.randn(3, 4)
    assert tensors.dot([a], [b], [a]).item() == pytest.approx((a * b).sum().item(), rel=1e-5)


@pytest.mark.parametrize(("value", "expected"), [(4.0, 0.25), (math.inf, 0.0), (math.nan, math.nan)])
def test_reciprocal(value: float, expected: float) -> None:
    assert tensors.reciprocal(torch.tensor(value)).item() == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reciprocal_of_zero_times_zero_is_zero(dtype: torch.dtype) -> None:
    inverse = tensors.reciprocal(torch.tensor(0.0, dtype=dtype))
    assert inverse.isfinite()
    assert (inverse * 0).item() == 0


@each_list
def test_add_scaled(shapes: list, dtypes: list) -> None:
    adds_scaled(shapes, dtypes, torch.tensor(0.3, dtype=torch.float64))


@pytest.mark.parametrize("dtypes", TYPES.values(), ids=TYPES)
def test_add_scaled_by_a_number(dtypes: list) -> None:
    adds_scaled(SHAPES["several"], dtypes, 0.3)


def adds_scaled(shapes: list, dtypes: list, scale: float | Tensor) -> None:
    a, b = draw(shapes, dtypes, 0), draw(shapes, dtypes, 1)
    expected = vector(a) + 0.3 * vector(b)
    tensors.add_scaled_(a, b, scale)
    rounding = max(torch.finfo(dtype).eps for dtype in dtypes)
    torch.testing.assert_close(vector(a), expected, rtol=rounding, atol=rounding)


def test_add_scaled_of_nothing() -> None:
    tensors.add_scaled_([], [], 0.5)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SHAPES)
def test_orthogonalize_leaves_what_is_orthogonal(name: str, dtype: torch.dtype) -> None:
    g, g_s = draw(SHAPES[name], [dtype], 0), draw(SHAPES[name], [dtype], 1)
    truth = vector(g_s) - (vector(g_s) @ vector(g)) / (vector(g) @ vector(g)) * vector(g)
    buffers = [x.clone() for x in g]
    kept = [x.clone() for x in g_s]
    tensors.orthogonalize_(buffers, g_s, tensors.dot(g_s, g, g) / tensors.norm(g, g) ** 2)
    tolerance = max(TOLERANCE[dtype], torch.finfo(dtype).eps) * 10
    assert float((vector(buffers) - truth).norm()) <= tolerance * float(vector(g_s).norm())
    assert all(map(torch.equal, g_s, kept))


LAID_OUT: dict[str, list[Tensor]] = {
    "small": [torch.empty(5), torch.empty(2, 3), torch.empty(())],
    "large": [torch.empty(BLOCK + 3), torch.empty(2, BLOCK)],
    "small, large, small": [torch.empty(7), torch.empty(BLOCK * 2 + 1), torch.empty(4)],
    "large, channels last": [torch.empty(2, BLOCK, 1, 2).to(memory_format=torch.channels_last)],
    "large, in no order": [torch.empty(3, BLOCK).t()],
    "more than one block of small": [torch.empty(BLOCK // 2 + 1) for _ in range(3)],
    "none": [],
}


@pytest.mark.parametrize("name", LAID_OUT)
def test_blocks_cover_every_element_once_and_correspond(name: str) -> None:
    a = [torch.arange(t.numel(), dtype=torch.float32).view(t.shape).to(t).contiguous() for t in LAID_OUT[name]]
    a = [torch.empty_like(t).copy_(x) for t, x in zip(LAID_OUT[name], a, strict=True)]  # in the layout of t
    b = [torch.zeros_like(x) for x in a]
    sizes = []
    for xs, ys, like in blocks(a, b, like=a):
        assert len(like) == 0
        torch._foreach_add_(ys, xs)
        sizes.append(sum(x.numel() for x in xs))
    assert all(map(torch.equal, a, b)), "each element once, and in its place"
    assert sum(sizes) == sum(x.numel() for x in a)
    if name != "large, in no order":
        assert all(size <= BLOCK for size in sizes)


def test_a_whole_block_has_every_tensor_in_one_piece() -> None:
    a = LAID_OUT["small, large, small"]
    [(block, like)] = blocks(a, like=a, whole=True)
    for one, other, of in zip(block, a, like, strict=True):
        assert one is other is of
