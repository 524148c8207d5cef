"""`backward` with a `GradScaler`, which scales gradients and leaves steps out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim.lr_scheduler import StepLR

from sam_algos import AESAM, LookSAM, Method, SharpnessAwareOptimizer
from tests.cases import (
    Batch,
    Closure,
    each_method,
    make_batches,
    make_model,
    reads_losses,
    same,
    snapshot,
    steps,
    train,
    wrap,
)

BATCHES = make_batches(6)


class Scaled(Closure):
    def __init__(self, model: nn.Module, optimizer: Any, batch: Batch, scaler: GradScaler) -> None:
        super().__init__(model, optimizer, batch)
        self.scaler = scaler

    def __call__(self, *samples: Any) -> Any:
        if isinstance(losses := self.losses(*samples), Tensor) and reads_losses(self.optimizer):
            return losses
        self.optimizer.zero_grad()
        self.scaler.scale(losses.mean()).backward()
        return losses.mean().detach()


@each_method
def test_under_a_scaler_the_method_sees_gradients_without_the_scale(method: Method) -> None:
    """The scale is a power of two: but for it, every number is that of training without it."""
    scaler = GradScaler("cpu", init_scale=2.0**10)

    def take(optimizer: SharpnessAwareOptimizer) -> None:
        scaler.unscale_(optimizer.base_optimizer)
        scaler.step(optimizer.base_optimizer)
        scaler.update()

    model, other = make_model("mlp"), make_model("mlp")
    optimizer: Any = wrap(method, model, total_steps=len(BATCHES))
    torch.manual_seed(2)
    for batch in BATCHES:
        optimizer.backward(Scaled(model, optimizer, batch, scaler), scaler=scaler)
        take(optimizer)
    expected = train(method, other, BATCHES)
    assert same(snapshot(model, optimizer), snapshot(other, expected))


@pytest.mark.parametrize("in_pass", [1, 2])
def test_a_step_that_the_scaler_leaves_out_leaves_no_trace(in_pass: int) -> None:
    scaler, model = GradScaler("cpu", init_scale=2.0**10), make_model("mlp")
    optimizer: Any = wrap(LookSAM(k=1), model)
    before = snapshot(model, optimizer)

    class Overflows(Scaled):
        def losses(self, *samples: Any) -> Tensor:
            self.calls += 1
            return super().losses(*samples) * (math.inf if self.calls == in_pass else 1.0)

    optimizer.backward(Overflows(model, optimizer, BATCHES[0], scaler), scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    assert same(snapshot(model, optimizer), before)
    assert scaler.get_scale() == 2.0**9
    optimizer.backward(Scaled(model, optimizer, BATCHES[0], scaler), scaler=scaler)
    scaler.step(optimizer)
    assert optimizer.method_state_dict()["step"] == 1


class Overflows(Scaled):
    """In every pass."""

    def losses(self, *samples: Any) -> Tensor:
        return super().losses(*samples) * math.inf


@pytest.mark.parametrize("nonfinite", ["pass", "skip"])
def test_a_scaler_that_leaves_steps_out_is_not_counted(nonfinite: Any) -> None:
    scaler, model = GradScaler("cpu", init_scale=2.0**10), make_model("mlp")
    optimizer: Any = wrap(LookSAM(k=2, nonfinite=nonfinite), model)
    before = snapshot(model, optimizer)
    optimizer.backward(Overflows(model, optimizer, BATCHES[0], scaler), scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    assert same(snapshot(model, optimizer), before)
    assert scaler.get_scale() == 2.0**9


def test_a_scaler_counts_for_the_call_that_it_is_given_to() -> None:
    """Also where that one failed."""
    scaler, model, other = GradScaler("cpu", init_scale=2.0**10), make_model("mlp"), make_model("mlp")
    optimizer: Any = wrap(AESAM(), model, total_steps=len(BATCHES))
    with pytest.raises(TypeError, match="returned None"):
        optimizer.backward(lambda *_: None, scaler=scaler)
    torch.manual_seed(2)
    list(steps(model, optimizer, BATCHES))
    assert same(snapshot(model, optimizer), snapshot(other, train(AESAM(), other, BATCHES)))


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("owner", ["wrapped", "base"])
def test_a_fused_optimizer_under_a_scaler_skips_and_unscales_too(owner: str, unscale: bool) -> None:
    """A scaler leaves both to such an optimizer, and tells it so by attributes."""
    model, other = make_model("mlp"), make_model("mlp")
    scaler = GradScaler("cpu", init_scale=2.0**4)
    bases = [torch.optim.AdamW(m.parameters(), fused=True) for m in (model, other)]
    optimizer, expected = (LookSAM(k=2).wrap(b, model=m) for b, m in zip(bases, (model, other), strict=True))
    mine: Any = optimizer if owner == "wrapped" else bases[0]
    for i, batch in enumerate(BATCHES):
        for closure in (Overflows, Scaled) if i == 2 else (Scaled,):
            optimizer.zero_grad()
            optimizer.backward(closure(model, optimizer, batch, scaler), scaler=scaler)
            if unscale:
                scaler.unscale_(mine)
            scaler.step(mine)
            scaler.update()
        expected.step(Closure(other, expected, batch))
    assert scaler.get_scale() == 2.0**3
    assert same(snapshot(model, optimizer), snapshot(other, expected))


@pytest.mark.parametrize("owner", ["wrapped", "base"])
@pytest.mark.parametrize("stepped", ["wrapped", "base"])
def test_a_scheduler_of_either_optimizer_sees_the_step_of_a_scaler(owner: str, stepped: str) -> None:
    """PyTorch would warn of a scheduler that steps before the optimizer, and warnings are errors here."""
    model = make_model("mlp")
    optimizer: Any = wrap(AESAM(), model)
    either = {"wrapped": optimizer, "base": optimizer.base_optimizer}
    scheduler, scaler = StepLR(either[owner], 1), GradScaler("cpu", init_scale=2.0)
    for batch in BATCHES:
        optimizer.backward(Scaled(model, optimizer, batch, scaler), scaler=scaler)
        scaler.step(either[stepped])
        scheduler.step()
        scaler.update()
    assert optimizer.method_state_dict()["step"] == len(BATCHES)


def test_with_a_disabled_scaler_the_method_skips_nonfinite_steps_itself() -> None:
    scaler, model = GradScaler("cpu", enabled=False), make_model("mlp")
    optimizer: Any = wrap(LookSAM(k=2, nonfinite="skip"), model)
    weights = [p.detach().clone() for p in model.parameters()]
    optimizer.backward(Overflows(model, optimizer, BATCHES[0], scaler), scaler=scaler)
    scaler.step(optimizer)
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    assert optimizer.metrics["sam/nonfinite"] == 1.0
