"""Checkpoints are the base optimizer's, runs resume exactly; whatever takes an optimizer takes this one."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook

from sam_algos import SAM, LookSAM, Method, MomentumSAM, SharpnessAwareOptimizer
from tests.cases import (
    BASES,
    Closure,
    each_ascent,
    each_kind,
    each_kind_and_base,
    each_method_and_base,
    make_batches,
    make_model,
    same,
    snapshot,
    steps,
    wrap,
)


def run(model: nn.Module, optimizer: Optimizer, batches: list) -> None:
    list(steps(model, optimizer, batches))


def through_a_file(state: Any) -> Any:
    """Saved and loaded as a checkpoint: ``weights_only`` refuses all but tensors and primitives."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each_method_and_base
def test_resumes_exactly(method: Method, base: str) -> None:
    batches = make_batches(12)
    whole = make_model("batchnorm")
    through = wrap(method, whole, base)
    run(whole, through, batches)

    first, second = make_model("batchnorm"), make_model("batchnorm", seed=5)
    before, after = wrap(method, first, base), wrap(method, second, base)
    run(first, before, batches[:7])
    second.load_state_dict(through_a_file(first.state_dict()))
    after.load_state_dict(through_a_file(before.state_dict()))
    after.load_method_state_dict(through_a_file(before.method_state_dict()))
    run(second, after, batches[7:])
    assert same(snapshot(second, after), snapshot(whole, through))
    assert after.metrics == pytest.approx(through.metrics, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("method", [SAM(), LookSAM()], ids=str)
@pytest.mark.parametrize("base", BASES)
def test_programs_see_the_base_optimizer(method: Method, base: str) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model, base)
    plain = optimizer.base_optimizer
    assert isinstance(optimizer, SharpnessAwareOptimizer)
    assert isinstance(optimizer, Optimizer)
    assert type(plain) is type(BASES[base](model.parameters()))
    assert type(optimizer).__qualname__ == type(plain).__qualname__
    for shared in ("param_groups", "state", "defaults"):
        assert getattr(optimizer, shared) is getattr(plain, shared)
    run(model, optimizer, make_batches(2))
    assert optimizer.state is plain.state
    assert same(optimizer.state_dict(), plain.state_dict())
    optimizer.param_groups[0]["lr"] = 0.5
    assert plain.param_groups[0]["lr"] == 0.5


@each_kind_and_base
def test_checkpoint_loads_with_and_without_the_method(method: Method, base: str) -> None:
    batches = make_batches(9)
    model = make_model("mlp")
    ours = wrap(method, model, base)
    run(model, ours, batches[:3])
    plain = type(ours.base_optimizer)(model.parameters(), lr=0.05)
    plain.load_state_dict(through_a_file(ours.state_dict()))
    run(model, plain, batches[3:6])
    plain.zero_grad()
    again = wrap(method, model, base)
    again.load_state_dict(through_a_file(plain.state_dict()))
    assert same(again.state_dict()["state"], plain.state_dict()["state"])
    run(model, again, batches[6:])
    for value in again.state_dict()["state"].values():
        assert value.get("step", torch.tensor(9.0)) == 9


@each_kind
def test_memory_of_another_method_is_ignored(method: Method) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model)
    before = optimizer.method_state_dict()
    for foreign in ({}, {"policy": None}, {"policy": {"unknown": 1.0}, "samples": {"unknown": 2}}):
        optimizer.load_method_state_dict(foreign)
        assert optimizer.method_state_dict() == before


@each_kind
def test_counters_survive_a_change_of_method(method: Method) -> None:
    optimizer = wrap(method, make_model("mlp"))
    before = optimizer.method_state_dict()
    counters = {"step": 7, "sharp": 3, "nonfinite": 1}
    optimizer.load_method_state_dict({"policy": {"unknown": 1.0}, **counters})
    assert optimizer.method_state_dict() == before | counters
    optimizer.load_method_state_dict({"step": 7.5, "sharp": None})
    assert optimizer.method_state_dict() == before


@each_kind
def test_memory_is_handed_out_as_a_copy(method: Method) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model)
    run(model, optimizer, make_batches(2))
    kept = optimizer.method_state_dict()
    kept["step"] = 99
    kept["policy"]["mean"] = 99.0
    assert optimizer.method_state_dict()["step"] == 2
    assert optimizer.method_state_dict()["policy"].get("mean") != 99.0


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
}


@each_kind
@pytest.mark.parametrize("duplicate", COPIES)
def test_a_copy_trains_on_as_the_original(method: Method, duplicate: str) -> None:
    batches = make_batches(10)
    model = make_model("batchnorm")
    optimizer = wrap(method, model, "adamw")
    run(model, optimizer, batches[:4])
    twin, its_optimizer = COPIES[duplicate]((model, optimizer))
    before = snapshot(model, optimizer)
    run(twin, its_optimizer, batches[4:])
    assert same(snapshot(model, optimizer), before)
    run(model, optimizer, batches[4:])
    assert same(snapshot(twin, its_optimizer), snapshot(model, optimizer))
    assert type(its_optimizer).__name__ == "AdamW"


@each_ascent
@pytest.mark.parametrize("duplicate", [None, *COPIES])
def test_hooks_run_once_per_step(method: Method, duplicate: str | None) -> None:
    model = make_model("mlp")
    pair = (model, wrap(method, model))
    model, optimizer = COPIES[duplicate](pair) if duplicate else pair
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    handle = register_optimizer_step_post_hook(lambda *_: calls.append("global"))
    run(model, optimizer, make_batches(1))
    handle.remove()
    assert sorted(calls) == ["after", "before", "global"]


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "lambda": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda t: 0.9**t),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 6),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, 6),
}


@pytest.mark.parametrize("method", [SAM(), MomentumSAM()], ids=str)
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("around", ["wrapped", "base"])
def test_schedulers_work(method: Method, name: str, around: str) -> None:
    """Warnings are errors here: a scheduler warns if it does not see the optimizer step."""
    rates = []
    for trainee in (method, None):
        model = make_model("mlp")
        optimizer = wrap(trainee, model)
        target = optimizer.base_optimizer if around == "base" and trainee else optimizer
        scheduler = SCHEDULERS[name](target)
        rates.append([])
        for _ in steps(model, optimizer, make_batches(6)):
            rates[-1].append([(g["lr"], g["momentum"]) for g in optimizer.param_groups])
            if len(rates[-1]) < 6:
                scheduler.step()
    assert rates[0] == rates[1]
    assert len({tuple(r) for r in rates[0]}) > 1


@pytest.mark.parametrize("duplicate", COPIES)
def test_a_scheduled_optimizer_can_be_copied(duplicate: str) -> None:
    model = make_model("mlp")
    optimizer = wrap(SAM(), model)
    scheduler = lr_scheduler.StepLR(optimizer, 2)
    for batch in make_batches(3):
        optimizer.step(Closure(model, optimizer, batch))
        scheduler.step()
    twin, its_optimizer, its_scheduler = COPIES[duplicate]((model, optimizer, scheduler))
    run(twin, its_optimizer, make_batches(2))
    its_scheduler.step()
    assert its_optimizer.param_groups[0]["lr"] == pytest.approx(0.0005)
