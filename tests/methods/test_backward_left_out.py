"""`backward` whose step is left out, goes wrong or is somebody else's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_algos import AESAM, SAM, LookSAM, Method
from tests.cases import Closure, each_kind, make_batches, make_model, same, snapshot, steps, wrap
from tests.methods.test_backward import by_backward

BATCHES = make_batches(6)


def test_a_step_that_was_left_out_is_forgotten() -> None:
    """Also by a step with a closure."""
    model, other = make_model("mlp"), make_model("mlp")
    optimizer: Any = wrap(AESAM(), model)
    optimizer.backward(Closure(model, optimizer, BATCHES[0]))
    list(steps(model, optimizer, BATCHES[1:2]))
    expected: Any = wrap(AESAM(), other)
    list(steps(other, expected, BATCHES[1:2]))
    assert same(snapshot(model, optimizer), snapshot(other, expected))


class Adds(Closure):
    """Leaves zeroing to the program."""

    def __call__(self, *samples: Any) -> Any:
        loss = self.losses(*samples).mean()
        loss.backward()
        return loss.detach()


@pytest.mark.parametrize("after", ["backward", "step"])
def test_a_second_backward_without_a_step_or_zeroing_is_refused(after: str) -> None:
    """Plain gradients would be accumulated; that of the first `backward` would be lost."""
    model = make_model("mlp")
    optimizer: Any = wrap(SAM(), model)
    optimizer.backward(Adds(model, optimizer, BATCHES[0]))
    before = snapshot(model, optimizer)
    with pytest.raises(RuntimeError, match="did not zero them"):
        getattr(optimizer, after)(Adds(model, optimizer, BATCHES[1]))
    assert same(snapshot(model, optimizer), before)
    optimizer.zero_grad()
    optimizer.backward(Adds(model, optimizer, BATCHES[1]))
    optimizer.step()
    assert optimizer.method_state_dict()["step"] == 1


def test_the_step_counts_from_a_state_loaded_after_backward() -> None:
    model = make_model("mlp")
    optimizer: Any = wrap(SAM(), model)
    optimizer.backward(Closure(model, optimizer, BATCHES[0]))
    optimizer.load_method_state_dict({"step": 7, "sharp": 7})
    optimizer.step()
    assert optimizer.method_state_dict()["step"] == 8


@pytest.mark.parametrize("clip", [1e-3, 1e3])
def test_gradients_that_a_step_has_used_need_not_be_zeroed(clip: float) -> None:
    models = make_model("mlp"), make_model("mlp")
    for model, closure in zip(models, (Adds, Closure), strict=True):
        optimizer: Any = wrap(AESAM(), model)
        for batch in BATCHES:
            optimizer.backward(closure(model, optimizer, batch))
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    assert same(*map(snapshot, models))


@pytest.mark.parametrize("take", [lambda o: o.step(), lambda o: o.base_optimizer.step()])
@pytest.mark.parametrize("base", ["momentum", "adamw"])
def test_a_gradient_that_was_zeroed_before_the_step_is_not_remembered(base: str, take: Callable[[Any], Any]) -> None:
    model = make_model("mlp")
    optimizer: Any = wrap(LookSAM(k=2), model, base)
    by_backward(optimizer, model, BATCHES[:1])
    before = snapshot(model, optimizer)
    optimizer.backward(Closure(model, optimizer, BATCHES[1]))
    optimizer.zero_grad()
    take(optimizer)
    assert same(snapshot(model, optimizer), before)
    with pytest.raises(TypeError, match="needs the closure"):
        optimizer.step()


def test_a_hook_that_zeroes_gradients_after_the_step_does_not_lose_the_step() -> None:
    model = make_model("mlp")
    optimizer: Any = wrap(LookSAM(k=2), model)
    optimizer.register_step_post_hook(lambda base, *_: base.zero_grad())
    by_backward(optimizer, model, BATCHES)
    assert optimizer.method_state_dict()["step"] == len(BATCHES)


class Breaks(Closure):
    """In its ``last`` pass."""

    last = 0

    def losses(self, *samples: Any) -> Tensor:
        if self.calls == self.last:
            raise KeyboardInterrupt
        return super().losses(*samples)


@each_kind
@pytest.mark.parametrize("in_pass", [1, 2])
def test_an_exception_in_any_pass_of_backward_leaves_no_trace(method: Method, in_pass: int) -> None:
    model, other = make_model("batchnorm"), make_model("batchnorm")
    optimizer: Any = wrap(method, model, total_steps=4)
    expected: Any = wrap(method, other, total_steps=4)
    by_backward(optimizer, model, BATCHES[:2])
    by_backward(expected, other, BATCHES[:2])
    before = snapshot(model, optimizer, buffers=False)
    broken = Breaks(model, optimizer, BATCHES[2])
    broken.last = in_pass
    try:
        optimizer.backward(broken)
    except KeyboardInterrupt:
        assert same(snapshot(model, optimizer, buffers=False), before)
        with pytest.raises(TypeError, match="needs the closure"):
            optimizer.step()
    else:
        assert broken.calls < in_pass  # a step of one pass
    model.load_state_dict(other.state_dict())
    for each, net in ((optimizer, model), (expected, other)):
        torch.manual_seed(3)
        by_backward(each, net, BATCHES[2:4])
    assert same(snapshot(model, optimizer), snapshot(other, expected))


def test_deepspeeds_engine_is_refused() -> None:
    model = make_model("mlp")
    engine: Any = type("DeepSpeedEngine", (nn.Sequential,), {"__module__": "deepspeed.runtime.engine"})(model)
    with pytest.raises(ValueError, match=r"SAM: DeepSpeed is not supported.*DistributedDataParallel"):
        SAM().wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=engine)


@pytest.mark.parametrize("name", ["lightning.pytorch.plugins", "pytorch_lightning.plugins", "composer.trainer.trainer"])
def test_closures_of_trainers_that_clip_and_log_in_them_are_refused(name: str) -> None:
    model = make_model("mlp")
    optimizer: Any = wrap(SAM(), model)
    closure = lambda: model(BATCHES[0][0]).sum()  # noqa: E731
    closure.__module__ = name
    with pytest.raises(TypeError, match="already wrapped"):
        optimizer.step(closure)
