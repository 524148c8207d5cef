"""Weights are moved and come back to the last bit, wherever they are stored and whatever happens meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_algos.core.tensors.displacement import SMALL, Displacement


def flat_views() -> list[Tensor]:
    flat = torch.randn(10)
    return [nn.Parameter(flat[:4]), nn.Parameter(flat[4:])]


def twins() -> list[Tensor]:
    data = torch.randn(6)
    return [nn.Parameter(data), nn.Parameter(torch.randn(3)), nn.Parameter(data.view(2, 3)[0])]


STORED: dict[str, tuple[Any, bool]] = {
    "own storage": (lambda: [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))], True),
    "large": (lambda: [nn.Parameter(torch.randn(SMALL + 1)), nn.Parameter(torch.randn(3))], True),
    "large part of a buffer": (lambda: [nn.Parameter(torch.randn(2 * SMALL)[: SMALL + 1])], False),
    "scalar": (lambda: [nn.Parameter(torch.randn(()))], True),
    "bfloat16": (lambda: [nn.Parameter(torch.randn(5).bfloat16())], True),
    "complex": (lambda: [nn.Parameter(torch.randn(5, dtype=torch.complex64))], True),
    "channels last": (
        lambda: [nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))],
        True,
    ),
    "views of one buffer": (flat_views, False),
    "part of a buffer": (lambda: [nn.Parameter(torch.randn(9)[3:6])], False),
    "shared memory": (lambda: [nn.Parameter(torch.randn(4).share_memory_())], False),
    "empty": (lambda: [nn.Parameter(torch.randn(0, 3))], False),
}


def displace(params: list, directions: list, scale: float, disposable: bool) -> Any:
    scales = [torch.tensor(scale, dtype=torch.float64)] * len(params)
    return Displacement()(params, directions, scales, disposable)


@pytest.mark.parametrize(("disposable", "error"), [(True, None), (False, None), (True, KeyboardInterrupt)])
@pytest.mark.parametrize("name", STORED)
def test_displaced_there_and_back(name: str, disposable: bool, error: type[BaseException] | None) -> None:
    make, swaps = STORED[name]
    params = make()
    before = [p.detach().clone() for p in params]
    addresses = [p.data_ptr() for p in params]
    directions = [torch.randn_like(p) for p in params]
    expected = [w + 0.1 * d for w, d in zip(before, directions, strict=True)]
    kept = [d.clone() for d in directions]
    try:
        with torch.no_grad(), displace(params, directions, 0.1, disposable):
            for p, w, address, d in zip(params, expected, addresses, directions, strict=True):
                torch.testing.assert_close(p.detach(), w)
                assert (p.data_ptr() != address) == swaps
                # A small tensor is not worth the calls that writing into the direction takes.
                assert (p.data_ptr() == d.data_ptr() and p.numel() > 0) == (
                    swaps and disposable and (p.numel() > SMALL or p.dtype not in (torch.float32, torch.float64))
                )
            if error:
                raise error
    except KeyboardInterrupt:
        assert error
    assert all(map(torch.equal, before, params))
    assert [p.data_ptr() for p in params] == addresses
    if not (disposable and swaps):
        assert all(map(torch.equal, directions, kept))


def test_tensors_that_overlap_come_back() -> None:
    params = twins()
    before = [p.detach().clone() for p in params]
    with torch.no_grad(), displace(params, [torch.randn_like(p) for p in params], 0.1, True):
        assert not torch.equal(params[1], before[1])
    assert all(map(torch.equal, before, params))


@pytest.mark.parametrize("rows", [3, SMALL])
def test_a_direction_laid_out_otherwise_is_not_written_to(rows: int) -> None:
    p, d = nn.Parameter(torch.randn(rows, 4)), torch.randn(4, rows).t()
    before, direction = p.detach().clone(), d.clone()
    with torch.no_grad(), displace([p], [d], 0.5, True):
        torch.testing.assert_close(p.detach(), before + 0.5 * direction)
        assert p.stride() == before.stride()
    assert torch.equal(d, direction)
    assert torch.equal(p, before)


def test_a_parameter_whose_memory_changes_is_classified_again() -> None:
    """One `Displacement` serves a whole run; in between a parameter may become a view of a flat buffer."""
    displacement, p = Displacement(), nn.Parameter(torch.randn(4))
    for data in (p.data, torch.randn(9)[2:6], torch.randn(4)):
        p.data = data
        before, address = data.clone(), p.data_ptr()
        swaps = data.untyped_storage().nbytes() == data.numel() * 4
        scales = [torch.tensor(0.5)]
        with torch.no_grad(), displacement([p], [torch.ones(4)], scales, True):
            assert torch.equal(p, before + 0.5)
            assert (p.data_ptr() != address) == swaps
        assert torch.equal(p, before)


@pytest.mark.parametrize("name", STORED)
def test_autograd_takes_both_ways_for_changes_in_place(name: str) -> None:
    """A graph that has saved weights is refused once they are others: displaced, or back."""
    params = STORED[name][0]()
    directions = [torch.ones_like(p) for p in params]
    point = Displacement(lambda: params)(params, directions, [torch.tensor(0.1)] * len(params))
    clean = sum((p.square().sum().abs() for p in params), torch.zeros(()))
    with point:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            clean.backward()
        displaced = sum((p.square().sum().abs() for p in params), torch.zeros(()))
        displaced.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        displaced.backward()


@pytest.mark.parametrize("known", [True, False])
def test_a_direction_of_zero_is_told_as_long_as_it_is_known(known: bool) -> None:
    params = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))]
    directions = [torch.zeros(2), torch.ones(3)]
    point = Displacement(lambda: params)(params, directions, [torch.tensor(0.1)] * 2)
    if not known:
        with point:
            pass
    assert point.stands_still(params[:1]) is known
    assert not point.stands_still(params)
