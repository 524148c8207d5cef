"""The passes without the step: `backward`, for loops and frameworks that take the step themselves."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as checkpoint
from torch import nn
from torch.optim.lr_scheduler import StepLR

from sam_algos import AESAM, SAM, LookSAM, Method, SharpnessAwareOptimizer
from tests.cases import (
    Batch,
    Closure,
    each_ascent,
    each_kind,
    make_batches,
    make_model,
    model_of,
    same,
    snapshot,
    steps,
    train,
    wrap,
)

BATCHES = make_batches(6)


def by_backward(
    optimizer: Any, model: nn.Module, batches: Sequence[Batch], take: Callable[[Any], Any] = lambda o: o.step()
) -> None:
    for batch in batches:
        optimizer.backward(Closure(model, optimizer, batch))
        take(optimizer)


def apart(method: Method, take: Callable[[Any], Any], model: nn.Module) -> Any:
    """Train by `backward`, and the step as ``take`` takes it."""
    optimizer: Any = wrap(method, model, total_steps=len(BATCHES))
    torch.manual_seed(2)
    by_backward(optimizer, model, BATCHES, take)
    return optimizer


@each_kind
def test_followed_by_step_it_is_one_step(method: Method) -> None:
    is_one_step(method, lambda o: o.step())


@each_ascent
@pytest.mark.parametrize("take", [lambda o: o.step(None), lambda o: o.base_optimizer.step()], ids=["none", "base"])
def test_followed_by_any_call_that_steps_it_is_one_step(method: Method, take: Callable[[Any], Any]) -> None:
    is_one_step(method, take)


def is_one_step(method: Method, take: Callable[[Any], Any]) -> None:
    model, other = make_model("batchnorm"), make_model("batchnorm")
    optimizer, expected = apart(method, take, model), train(method, other, BATCHES)
    assert same(snapshot(model, optimizer), snapshot(other, expected))
    assert optimizer.metrics == pytest.approx(expected.metrics, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("take", [lambda o: o.step(), lambda o: o.base_optimizer.step()])
def test_a_gradient_that_is_not_finite_leaves_nothing_to_step_on(take: Callable[[Any], Any]) -> None:
    model = make_model("mlp")
    optimizer: Any = wrap(SAM(nonfinite="skip"), model)
    before = snapshot(model, optimizer)
    loss = Closure(model, optimizer, BATCHES[0], loss=lambda out, y: (out - y).square() * math.inf)
    optimizer.backward(loss)
    take(optimizer)
    after = snapshot(model, optimizer)
    assert same(after["model"], before["model"])
    assert after["method"] == {**before["method"], "nonfinite": 1}


def test_clipping_between_backward_and_step_changes_the_gradient_and_no_decision() -> None:
    clipped, hooked = make_model("mlp"), make_model("mlp")

    def take(optimizer: SharpnessAwareOptimizer) -> None:
        nn.utils.clip_grad_norm_(clipped.parameters(), 0.1)
        optimizer.step()

    optimizer = apart(AESAM(), take, clipped)
    expected: Any = wrap(AESAM(), hooked, total_steps=len(BATCHES))
    expected.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(hooked.parameters(), 0.1) and None)
    torch.manual_seed(2)
    list(steps(hooked, expected, BATCHES))
    assert same(snapshot(clipped, optimizer), snapshot(hooked, expected))


def test_it_leaves_weights_and_memory_until_the_step() -> None:
    model = make_model("mlp")
    optimizer: Any = wrap(LookSAM(), model)
    before = snapshot(model, optimizer)
    optimizer.backward(Closure(model, optimizer, BATCHES[0]))
    assert same(snapshot(model, optimizer), before)
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()
    with pytest.raises(TypeError, match="needs the closure"):
        optimizer.step()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
def test_a_copy_has_no_gradient_waiting_and_goes_on(clone: Callable[[Any], Any]) -> None:
    model = make_model("mlp")
    optimizer: Any = wrap(AESAM(), model)
    optimizer.backward(Closure(model, optimizer, BATCHES[0]))
    optimizer.step()
    optimizer.backward(Closure(model, optimizer, BATCHES[1]))
    other = clone(optimizer)
    with pytest.raises(TypeError, match="needs the closure"):
        other.step()
    assert other.method_state_dict()["step"] == 1
    by_backward(other, model_of(other), BATCHES[1:])
    assert other.method_state_dict()["step"] == len(BATCHES)


@each_kind
def test_a_loop_that_saves_method_memory_resumes_exactly(method: Method) -> None:
    """The base optimizer's own checkpoint, and `method_memory` as programs save any object."""
    batches, whole = make_batches(8), make_model("batchnorm")
    through: Any = wrap(method, whole, total_steps=8)
    list(steps(whole, through, batches))
    first, second = make_model("batchnorm"), make_model("batchnorm", seed=5)
    before, after = (wrap(method, model, total_steps=8) for model in (first, second))
    by_backward(before, first, batches[:5])
    second.load_state_dict(first.state_dict())
    after.base_optimizer.load_state_dict(copy.deepcopy(before.base_optimizer.state_dict()))
    after.method_memory.load_state_dict(before.method_memory.state_dict())
    by_backward(after, second, batches[5:])
    assert same(snapshot(second, after), snapshot(whole, through))


def test_distributed_checkpoints_save_and_load_method_memory(tmp_path: Path) -> None:
    method = AESAM(target_overhead=0.5)  # whose memory grows
    optimizer: Any = train(method, make_model("mlp"), BATCHES)
    other: Any = wrap(method, make_model("mlp"), total_steps=len(BATCHES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, of a single process
        checkpoint.save({"method": optimizer.method_memory}, checkpoint_id=tmp_path)
        checkpoint.load({"method": other.method_memory}, checkpoint_id=tmp_path)
    assert other.method_state_dict() == optimizer.method_state_dict()


@pytest.mark.parametrize("owner", ["wrapped", "base"])
@pytest.mark.parametrize("take", [lambda o: o.step(), lambda o: o.base_optimizer.step()], ids=["wrapped", "base"])
def test_a_scheduler_of_either_optimizer_sees_the_step_of_either(owner: str, take: Callable[[Any], Any]) -> None:
    """PyTorch would warn of a scheduler that steps before the optimizer, and warnings are errors here."""
    model = make_model("mlp")
    optimizer: Any = wrap(AESAM(), model)
    scheduler = StepLR(optimizer if owner == "wrapped" else optimizer.base_optimizer, 1)
    for batch in BATCHES:
        by_backward(optimizer, model, [batch], take)
        scheduler.step()
    assert scheduler.last_epoch == len(BATCHES)


@pytest.mark.parametrize("call", ["step", "backward"])
def test_a_loss_in_place_of_the_closure_is_refused(call: str) -> None:
    model = make_model("mlp")
    optimizer: Any = wrap(SAM(), model)
    with pytest.raises(TypeError, match="has to be a function that computes the loss and its gradients, not a Tensor"):
        getattr(optimizer, call)(torch.ones(()))
