"""Whatever goes wrong in a pass, weights, optimizer state and memory are as if it had not been tried."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sam_algos import Method, SharpnessAwareOptimizer
from sam_algos.core.passes.closures import ClosurePasses
from sam_algos.core.passes.contract import Outcome, Pass
from sam_algos.core.passes.selection import EVERYTHING, Selection
from tests.cases import (
    Closure,
    each_ascent,
    each_kind,
    each_kind_on_the_whole_batch,
    each_method,
    make_batches,
    make_model,
    reads_losses,
    same,
    second_pass,
    snapshot,
    steps,
    watch,
    wrap,
)

ERRORS: dict[str, BaseException] = {
    "exception": ZeroDivisionError("in the model"),
    "interrupt": KeyboardInterrupt(),
    "out of memory": torch.OutOfMemoryError("CUDA out of memory."),
    "runtime": RuntimeError("CUDA error"),
}
PLACES = ("closure", "forward", "backward")
PASSES = ("first pass", "second pass")

# Where most is under way, for every method; the other places and passes; and there the other kinds of error.
WORST = ("exception", "backward", "second pass")
ELSEWHERE = [("exception", place, which) for place in PLACES for which in PASSES if (place, which) != WORST[1:]]
OTHERWISE = [(error, *WORST[1:]) for error in ERRORS if error != "exception"]


def each_fault(*faults: tuple[str, str, str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("error", "place", "which"), faults, ids=map(", ".join, faults))


class Faulty(Closure):
    """Goes wrong in one of its calls: before the gradients are zeroed, midway forward or midway backward."""

    def __init__(self, *args: Any, which: str, place: str, error: BaseException) -> None:
        super().__init__(*args)
        self.place, self.error = place, error
        self.number = 1 if which == "first pass" else second_pass(self.optimizer)
        if self.number == 2 and place == "backward" and reads_losses(self.optimizer):
            self.number = 3  # the second of them is a forward pass only

    def fail(self, *_: Any) -> None:
        raise self.error

    def __call__(self, samples: Selection = EVERYTHING) -> Any:
        if self.calls + 1 != self.number:
            return super().__call__(samples)
        last = self.model[-1]
        if self.place == "closure":
            self.fail()
        # The gradient of the last layer's weight is made while the first layer's is still to come.
        hook = last.weight.register_hook if self.place == "backward" else last.register_forward_pre_hook

        def once(*_: Any) -> None:
            handle.remove()
            self.fail()

        handle = hook(once)
        return super().__call__(samples)


class Overflowing(ClosurePasses):
    """Overflows in one of the passes of a step, as float16 does under Composer."""

    def __init__(self, optimizer: SharpnessAwareOptimizer) -> None:
        like: Any = optimizer._context.passes
        super().__init__(like._model, like._total_steps, selects=like._selects)
        optimizer._context.passes = self
        self.number = self._count = 0

    def first(self, closure: Any, plan: Pass) -> Any:
        self._count = 0
        return self._unless_overflown(super().first(closure, plan))

    def again(self, closure: Any, plan: Pass) -> Any:
        return self._unless_overflown(super().again(closure, plan))

    def _unless_overflown(self, outcome: Outcome) -> Outcome | None:
        self._count += 1
        return None if self._count == self.number else outcome


@each_method
def test_an_error_where_most_is_under_way_leaves_no_trace(method: Method) -> None:
    leaves_no_trace(method, *WORST)


@each_ascent
@each_fault(*ELSEWHERE)
def test_an_error_in_any_place_leaves_no_trace(method: Method, error: str, place: str, which: str) -> None:
    leaves_no_trace(method, error, place, which)


@each_ascent
@each_fault(*OTHERWISE)
def test_any_kind_of_error_leaves_no_trace(method: Method, error: str, place: str, which: str) -> None:
    leaves_no_trace(method, error, place, which)


def leaves_no_trace(method: Method, error: str, place: str, which: str) -> None:
    model, twin = make_model("mlp"), make_model("mlp")
    optimizer, calm = wrap(method, model), wrap(method, twin)
    hit = 0
    for batch in make_batches(8):
        before = snapshot(model, optimizer)
        try:
            optimizer.step(Faulty(model, optimizer, batch, which=which, place=place, error=ERRORS[error]))
        except type(ERRORS[error]):
            hit += 1
            assert same(snapshot(model, optimizer), before)
            optimizer.step(Closure(model, optimizer, batch))
        calm.step(Closure(twin, calm, batch))
        # A step tried again, as after an out-of-memory error, is the step of a run without the error.
        assert same(snapshot(model, optimizer), snapshot(twin, calm))
    assert hit


@each_kind
@pytest.mark.parametrize("which", PASSES)
def test_an_overflow_skips_the_step(method: Method, which: str) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model)
    passes, hit = Overflowing(optimizer), 0
    for batch in make_batches(8):
        before = snapshot(model, optimizer)
        passes.number = 1 if which == "first pass" else second_pass(optimizer)
        if optimizer.step(Closure(model, optimizer, batch)) is None:
            hit += 1
            assert same(snapshot(model, optimizer), before)
        passes.number = 0
        optimizer.step(Closure(model, optimizer, batch))
    assert hit


@each_ascent
def test_a_loss_of_zero_is_a_loss(method: Method) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model)
    before = snapshot(model)
    [batch] = make_batches(1)
    loss = optimizer.step(Closure(model, optimizer, batch, loss=lambda out, y: (out - out.detach()) * y))
    assert loss.item() == 0.0
    assert optimizer.method_state_dict()["step"] == 1
    assert not same(snapshot(model), before)


@pytest.mark.usefixtures("without_looks")
@each_kind_on_the_whole_batch
def test_returns_the_loss_of_the_first_pass(method: Method) -> None:
    """It is at the clean weights, unless a step has one pass only and that is displaced."""
    model, plain = make_model("mlp"), make_model("mlp")
    optimizer, base, passes = wrap(method, model), wrap(None, plain), watch(model)
    clean = nn.utils.parameters_to_vector(model.parameters()).detach()
    [batch] = make_batches(1)
    loss = optimizer.step(Closure(model, optimizer, batch))
    assert torch.equal(passes[0].weights, clean) or len(passes) == 1
    nn.utils.vector_to_parameters(passes[0].weights, plain.parameters())
    assert torch.equal(loss, base.step(Closure(plain, base, batch)))


@each_kind
def test_a_failing_base_step_is_not_counted(method: Method) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model)
    batches = make_batches(3)
    list(steps(model, optimizer, batches[:2]))
    before = optimizer.method_state_dict()

    def fail(*_: Any) -> None:
        raise RuntimeError("in the base optimizer")

    handle = optimizer.base_optimizer.register_step_pre_hook(fail)
    weights = snapshot(model, optimizer)
    with pytest.raises(RuntimeError, match="in the base optimizer"):
        optimizer.step(Closure(model, optimizer, batches[2]))
    handle.remove()
    assert optimizer.method_state_dict() == before
    assert same(snapshot(model, optimizer), weights)
