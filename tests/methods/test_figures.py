"""Figures are computed when they are read, and are then those of the step."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sam_algos import SAM, MomentumSAM
from tests.cases import Closure, make_batches, make_model, wrap

UNREAD = {"one pass": MomentumSAM(rho=0.1), "plain steps": SAM(interval=100)}
each_unread = pytest.mark.parametrize("name", UNREAD)


class CountDots(TorchDispatchMode):
    """Counts inner products, which are what norms are made of on a CPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket is torch.ops.aten.dot
        return func(*args, **(kwargs or {}))


def trained(name: str, steps: int) -> tuple[nn.Module, Any]:
    model = make_model("mlp")
    optimizer = wrap(UNREAD[name], model)
    for batch in make_batches(steps):
        optimizer.step(Closure(model, optimizer, batch))
    return model, optimizer


def norm(model: nn.Module) -> float:
    return math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None))


def dots(model: nn.Module, optimizer: Any) -> int:
    with CountDots() as ops:
        optimizer.step(Closure(model, optimizer, make_batches(1)[0]))
    return ops.count


@pytest.mark.parametrize(("name", "needed"), [("one pass", 1), ("plain steps", 0)])
def test_a_norm_that_no_equation_has_is_not_computed_while_nobody_reads_it(name: str, needed: int) -> None:
    model, optimizer = trained(name, 3)
    assert dots(model, optimizer) == needed
    assert optimizer.metrics["sam/grad_norm"] == pytest.approx(norm(model), rel=1e-5)
    assert dots(model, optimizer) == needed + 1  # whoever has read it once is told in every step


@each_unread
def test_figures_that_are_read_late_are_those_of_the_step(name: str) -> None:
    model, optimizer = trained(name, 3)
    expected = norm(model)
    optimizer.zero_grad()
    assert optimizer.metrics["sam/grad_norm"] == pytest.approx(expected, rel=1e-5)
    assert optimizer.metrics["sam/fraction"] == {"one pass": 2 / 3, "plain steps": 1 / 3}[name]


@each_unread
@pytest.mark.parametrize("change", [lambda p: p.grad.mul_(2), lambda p: setattr(p, "grad", None)])
def test_the_norm_of_a_gradient_that_was_changed_since_is_unknown(name: str, change: Any) -> None:
    model, optimizer = trained(name, 3)
    change(next(model.parameters()))
    assert math.isnan(optimizer.metrics["sam/grad_norm"])
    optimizer.step(Closure(model, optimizer, make_batches(1)[0]))
    assert optimizer.metrics["sam/grad_norm"] == pytest.approx(norm(model), rel=1e-5)


@each_unread
def test_a_gradient_that_is_not_finite_is_counted_once_whoever_asks_first(name: str) -> None:
    model, optimizer = trained(name, 3)
    optimizer.step(Closure(model, optimizer, make_batches(1)[0], loss=lambda out, y: (out - y) * math.inf))
    for _ in range(2):
        assert optimizer.method_state_dict()["nonfinite"] == 1
        assert optimizer.metrics["sam/nonfinite"] == 1


@each_unread
def test_a_copy_has_the_figures_of_the_original(name: str) -> None:
    model, optimizer = trained(name, 3)
    expected = norm(model)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other.metrics["sam/grad_norm"] == pytest.approx(expected, rel=1e-5)


@each_unread
def test_figures_of_the_last_step_stay_when_the_next_one_fails(name: str) -> None:
    model, optimizer = trained(name, 3)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(Closure(model, optimizer, make_batches(1)[0], loss=lambda *_: 1 / 0))  # pyright: ignore
    assert optimizer.metrics["sam/fraction"] == {"one pass": 2 / 3, "plain steps": 1 / 3}[name]
