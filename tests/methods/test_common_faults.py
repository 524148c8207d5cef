"""Whatever goes wrong in a pass, weights, optimizer state and memory are as if it had not been tried."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_algos import Method
from tests.cases import (
    Closure,
    each_method,
    each_method_on_the_whole_batch,
    make_batches,
    make_model,
    same,
    snapshot,
    steps,
    wrap,
)

ERRORS: dict[str, BaseException] = {
    "exception": ZeroDivisionError("in the model"),
    "interrupt": KeyboardInterrupt(),
    "out of memory": torch.OutOfMemoryError("CUDA out of memory."),
    "runtime": RuntimeError("CUDA error"),
}
PLACES = ("closure", "forward", "backward")


class Faulty(Closure):
    """Goes wrong in one of its calls: before the gradients are zeroed, midway forward or midway backward."""

    def __init__(self, *args: Any, call: int, place: str, error: BaseException) -> None:
        super().__init__(*args)
        self.call, self.place, self.error = call, place, error

    def fail(self, *_: Any) -> None:
        raise self.error

    def __call__(self, fraction: float = 1.0) -> Any:
        if self.calls + 1 != self.call:
            return super().__call__(fraction)
        last = self.model[-1]
        if self.place == "closure":
            self.fail()
        # The gradient of the last layer's weight is made while the first layer's is still to come.
        hook = last.weight.register_hook if self.place == "backward" else last.register_forward_pre_hook
        handle = hook(self.fail)
        try:
            return super().__call__(fraction)
        finally:
            handle.remove()


class Overflowing(Closure):
    """Returns None from one of its calls, as Composer's closure does where float16 has overflowed."""

    def __init__(self, *args: Any, call: int) -> None:
        super().__init__(*args)
        self.call = call

    def __call__(self, fraction: float = 1.0) -> Any:
        loss = super().__call__(fraction)
        return None if self.calls == self.call else loss


@each_method
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("call", [1, 2], ids=["first pass", "second pass"])
def test_an_error_leaves_no_trace(method: Method, error: str, place: str, call: int) -> None:
    model, twin = make_model("mlp"), make_model("mlp")
    optimizer, calm = wrap(method, model), wrap(method, twin)
    hit = 0
    for batch in make_batches(8):
        before = snapshot(model, optimizer)
        try:
            optimizer.step(Faulty(model, optimizer, batch, call=call, place=place, error=ERRORS[error]))
        except type(ERRORS[error]):
            hit += 1
            assert same(snapshot(model, optimizer), before)
            optimizer.step(Closure(model, optimizer, batch))
        calm.step(Closure(twin, calm, batch))
        # A step tried again, as after an out-of-memory error, is the step of a run without the error.
        assert same(snapshot(model, optimizer), snapshot(twin, calm))
    assert hit


@each_method
@pytest.mark.parametrize("call", [1, 2], ids=["first pass", "second pass"])
def test_an_overflow_skips_the_step(method: Method, call: int) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model)
    hit = 0
    for batch in make_batches(8):
        before = snapshot(model, optimizer)
        closure = Overflowing(model, optimizer, batch, call=call)
        if optimizer.step(closure) is None:
            hit += 1
            assert closure.calls == call
            assert same(snapshot(model, optimizer), before)
        optimizer.step(Closure(model, optimizer, batch))
    assert hit


@each_method
def test_base_optimizer_steps_from_the_clean_weights_in_their_own_memory(method: Method) -> None:
    model = make_model("batchnorm")
    optimizer = wrap(method, model)
    clean: list[Tensor] = []
    seen: list[bool] = []
    addresses = [p.data_ptr() for p in model.parameters()]
    optimizer.base_optimizer.register_step_pre_hook(
        lambda *_: seen.append(all(map(torch.equal, clean, model.parameters())))
    )
    for batch in make_batches(8):
        clean[:] = [p.detach().clone() for p in model.parameters()]
        optimizer.step(Closure(model, optimizer, batch))
        assert [p.data_ptr() for p in model.parameters()] == addresses
    assert seen == [True] * 8


@each_method
def test_second_pass_is_at_other_weights(method: Method) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda m, _: seen.append(nn.utils.parameters_to_vector(m.parameters())))
    displaced = 0
    for batch in make_batches(8):
        seen.clear()
        optimizer.step(Closure(model, optimizer, batch))
        displaced += len(seen) == 2 and not torch.equal(seen[0], seen[1])
    assert displaced


@each_method
def test_a_loss_of_zero_is_a_loss(method: Method) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model)
    before = snapshot(model)
    [batch] = make_batches(1)
    loss = optimizer.step(Closure(model, optimizer, batch, loss=lambda out, y: (out - out.detach()).mul(y).sum()))
    assert loss.item() == 0.0
    assert optimizer.method_state_dict()["step"] == 1
    assert not same(snapshot(model), before)


@each_method_on_the_whole_batch
def test_returns_the_loss_at_the_clean_weights(method: Method) -> None:
    model, plain = make_model("mlp"), make_model("mlp")
    optimizer, base = wrap(method, model), wrap(None, plain)
    [batch] = make_batches(1)
    assert torch.equal(optimizer.step(Closure(model, optimizer, batch)), base.step(Closure(plain, base, batch)))


@each_method
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
