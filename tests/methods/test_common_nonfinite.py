"""Gradients that are not finite: handed on, or the step skipped; never part of a policy's statistics."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from sam_algos import Method
from tests.cases import (
    Closure,
    each_ascent,
    each_kind,
    each_method,
    make_batches,
    make_model,
    same,
    second_pass,
    snapshot,
    steps,
    wrap,
)


class Exploding(Closure):
    """Gives gradients that are not finite from one of its calls on."""

    def __init__(self, *args: Any, call: int, factor: float) -> None:
        super().__init__(*args)
        self.call, self.factor = call, factor
        self.loss = lambda out, y: (out - y).square() * (factor if self.calls >= call else 1)


def explode(
    optimizer: torch.optim.Optimizer, model: nn.Module, call: int, factor: float, count: int, *, skipped: bool
) -> int:
    """Take steps until one has had such gradients; the number of its passes."""
    for batch in make_batches(count):
        before = snapshot(model, optimizer)
        closure = Exploding(model, optimizer, batch, call=call, factor=factor)
        optimizer.step(closure)
        if closure.calls >= call:
            break
    if skipped:
        assert same(snapshot(model, optimizer)["model"], before["model"])
        assert same(snapshot(model, optimizer)["optimizer"], before["optimizer"])
        assert optimizer.method_state_dict() == before["method"] | {"nonfinite": 1}
    return closure.calls


@each_method
def test_skip_leaves_everything_but_the_count(method: Method) -> None:
    skip_leaves_everything_but_the_count(method, 2, math.nan)


@each_ascent
@pytest.mark.parametrize(("call", "factor"), [(1, math.nan), (1, math.inf), (2, math.inf)])
def test_skip_works_for_nan_and_infinity_in_either_pass(method: Method, call: int, factor: float) -> None:
    skip_leaves_everything_but_the_count(method, call, factor)


def skip_leaves_everything_but_the_count(method: Method, call: int, factor: float) -> None:
    model = make_model("mlp")
    optimizer = wrap(replace(method, nonfinite="skip"), model)
    list(steps(model, optimizer, make_batches(2)))
    call = min(call, second_pass(optimizer))
    assert explode(optimizer, model, call, factor, count=20, skipped=True) >= call
    assert optimizer.metrics["sam/nonfinite"] == 1
    list(steps(model, optimizer, make_batches(3)))
    assert all(p.isfinite().all() for p in model.parameters())


@each_kind
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_pass_hands_nonfinite_gradients_on_and_keeps_statistics_finite(method: Method, factor: float) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model, "sgd")
    list(steps(model, optimizer, make_batches(2)))
    before = optimizer.method_state_dict()
    weights = snapshot(model)
    explode(optimizer, model, 1, factor, count=1, skipped=False)
    memory = optimizer.method_state_dict()
    assert memory["step"] == 3
    assert optimizer.metrics["sam/nonfinite"] == 1
    assert all(math.isfinite(value) for value in memory["policy"].values() if isinstance(value, float))
    assert not all(p.isfinite().all() for p in model.parameters())
    if method.composition().policy.reads_gradient:
        assert memory["policy"] == before["policy"]
        model.load_state_dict(weights["model"], strict=False)
        list(steps(model, optimizer, make_batches(2)))
        assert all(math.isfinite(value) for value in optimizer.metrics.values())
