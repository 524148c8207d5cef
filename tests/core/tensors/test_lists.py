"""Arithmetic on lists of tensors against the same arithmetic on one long vector."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sam_algos.core.tensors import blocks
from sam_algos.core.tensors import lists as tensors
from sam_algos.core.tensors.blocks import block_size, rescale_twice_

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


BLOCK = 10_000  # for these tests
LAID_OUT: dict[str, list[Tensor]] = {
    "small": [torch.empty(5), torch.empty(2, 3), torch.empty(())],
    "large": [torch.empty(BLOCK + 3), torch.empty(2, BLOCK)],
    "small, large, small": [torch.empty(7), torch.empty(BLOCK * 2 + 1), torch.empty(4)],
    "large, channels last": [torch.empty(2, BLOCK, 1, 2).to(memory_format=torch.channels_last)],
    "large, in no order": [torch.empty(3, BLOCK).t()],
    "large, one in another order": [torch.empty(2, BLOCK), torch.empty(BLOCK, 2).t()],
    "bfloat16": [torch.empty(BLOCK + 3, dtype=torch.bfloat16)],
    "complex": [torch.empty(9000, dtype=torch.complex64)],
    "float32 and float64": [torch.empty(9000), torch.empty(9001, dtype=torch.float64)],
    "none": [],
}


def rescaled(name: str, *, in_blocks: bool) -> tuple[list[Tensor], Tensor, list[int]]:
    """Random values rescaled by ``T = |w| + 1``, ``‖T values‖``, and the elements of each block."""
    torch.manual_seed(0)
    values, weights = ([torch.empty_like(t).normal_() for t in LAID_OUT[name]] for _ in range(2))
    if name == "large, one in another order":
        weights[1] = weights[1].contiguous()
    sizes: list[int] = []

    def factor(value: Tensor, weight: Tensor) -> Tensor:
        sizes.append(value.numel())
        return weight.abs() + 1

    def factors(some: list[Tensor], of: list[Tensor], params: list[Tensor]) -> list[Tensor]:
        assert [p.shape for p in params] == [v.shape for v in some]
        return [w.abs() + 1 for w in of]

    t = [w.abs().double() + 1 for w in weights]
    truth = [v.to(torch.promote_types(v.dtype, torch.float64)) * x for v, x in zip(values, t, strict=True)]
    norm = rescale_twice_(values, factors, weights, like=values, factor=factor if in_blocks else None)
    exact = torch.linalg.vector_norm(vector(truth)) if truth else torch.zeros(())
    assert float(norm) == pytest.approx(float(exact), rel=1e-2 if name == "bfloat16" else 1e-5)
    twice = vector([v * x for v, x in zip(truth, t, strict=True)]) if truth else torch.zeros(0)
    tolerance = 2e-2 if name == "bfloat16" else 1e-6
    assert not truth or torch.allclose(vector(values), twice, rtol=tolerance, atol=0.0)
    return values, norm, sizes


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", BLOCK)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("name", LAID_OUT)
def test_values_are_rescaled_twice_and_measured_in_between(name: str) -> None:
    apart, norm, sizes = rescaled(name, in_blocks=True)
    together, same, none = rescaled(name, in_blocks=False)
    assert all(map(torch.equal, apart, together)) and float(norm) == pytest.approx(float(same), rel=1e-5)
    assert all(size <= BLOCK for size in sizes) and not none


@pytest.mark.usefixtures("_small_blocks")
def test_large_tensors_alone_are_worked_through_in_blocks() -> None:
    assert rescaled("small", in_blocks=True)[2] == []
    assert rescaled("small, large, small", in_blocks=True)[2] == [BLOCK, BLOCK, 1]


CACHES: dict[str, tuple[dict[str, tuple[str, str]], int]] = {
    "a large cache of its own": ({"index2": ("2048K", "1"), "index3": ("107520K", "ff" * 14)}, 1 << 17),
    "a share of a larger one": ({"index2": ("512K", "3"), "index3": ("32768K", "ffff")}, 1 << 17),
    "a small share": ({"index0": ("32K", "1"), "index3": ("4096K", "f")}, 1 << 16),
    "more than is of use": ({"index3": ("98304K", "00000000,00000003")}, 1 << 19),
    "nothing that can be read": ({"index0": ("", "x"), "index1": ("32K", "0")}, 1 << 17),
    "no caches": ({}, 1 << 17),
}


@pytest.mark.parametrize("name", CACHES)
def test_three_blocks_fit_the_cache(name: str, tmp_path: Path) -> None:
    caches, expected = CACHES[name]
    for index, (size, processors) in caches.items():
        (tmp_path / index).mkdir()
        (tmp_path / index / "size").write_text(size + "\n")
        (tmp_path / index / "shared_cpu_map").write_text(processors + "\n")
    assert block_size(tmp_path) == expected
