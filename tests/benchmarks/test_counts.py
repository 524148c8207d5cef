"""What a step costs, in counts that do not depend on the machine."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from benchmarks.timing import norm_and_write
from sam_algos import AESAM, SAM, Method
from tests.benchmarks.traffic import Traffic, count


class NoStep(torch.optim.SGD):
    """Leaves nothing to count but the method."""

    def step(self, closure: None = None) -> None:
        pass


def optimizer_side(method: Method, tensors: int, elements: int) -> Traffic:
    """A step whose passes only put gradients in place."""
    model = nn.ParameterList(nn.Parameter(torch.ones(elements)) for _ in range(tensors))
    gradients = [[torch.ones(elements) for _ in range(tensors)] for _ in range(12)]
    losses = itertools.count(1.0)  # another at the displaced weights
    optimizer = method.wrap(NoStep(model.parameters(), lr=0.1), model=model, total_steps=10)

    def closure() -> float:
        for p, g in zip(model, gradients.pop(), strict=True):
            p.grad = g
        return next(losses)

    optimizer.step(closure)
    return count(lambda: optimizer.step(closure))


@pytest.mark.parametrize(
    ("elements", "bound"), [(100_000, 16.2), (4096, 24.2), (64, 32.5)], ids=["in one pass", "together", "packed"]
)
def test_bytes_that_a_sam_step_moves_per_parameter(elements: int, bound: float) -> None:
    """Read for the norm, read and read and write for the displacement.

    Small tensors are scaled and moved in two calls, which read and write the gradient from cache once more; the
    smallest are also copied into one vector for the norm, as that costs less than a call for each.
    """
    assert optimizer_side(SAM(), 20, elements).bytes / (20 * elements) <= bound


def test_operations_on_small_tensors_do_not_depend_on_their_number() -> None:
    few, many = (optimizer_side(SAM(), tensors, 64).operations for tensors in (10, 200))
    assert few == many


def test_a_flat_adaptive_step_reads_the_gradient_once_and_no_more() -> None:
    never = AESAM(lambda_1=100.0, lambda_2=100.0)
    assert optimizer_side(never, 20, 100_000).bytes / (20 * 100_000) <= 4.1


def test_the_unit_of_a_sharp_step_is_a_norm_and_a_write() -> None:
    """Read for the norm; read twice and written for the sum: the 16 bytes per parameter of a step of SAM."""
    unit = norm_and_write(torch.zeros(()), 1000)
    assert count(unit).bytes / 1000 == pytest.approx(16, abs=0.01)
    assert count(norm_and_write(torch.zeros((), dtype=torch.float64), 1000)).bytes / 1000 == pytest.approx(32, abs=0.01)


def test_traffic_counts_what_operations_read_and_write() -> None:
    a, b, out = torch.ones(100), torch.ones(100), torch.empty(100)
    assert count(lambda: torch.add(a, b, out=out)).bytes == 1200
    assert count(lambda: a.add_(b)).bytes == 1200
    assert count(lambda: a.copy_(b)).bytes == 800
    assert count(lambda: a.clone()).bytes == 800
    assert count(lambda: torch._foreach_add_([a], [b])).bytes == 1200
    views = count(lambda: a.view(10, 10).detach())
    assert (views.bytes, views.operations) == (0, 0)
