"""Nothing wrong in silence: what a closure, a wrap or a part gets wrong is refused, and refused unharmed."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sam_algos import (
    AESAM,
    SAM,
    LookSAM,
    Method,
    MomentumSAM,
)
from tests.cases import (
    Closure,
    each_ascent,
    each_kind,
    make_batches,
    make_model,
    reads_losses,
    refused,
    same,
    snapshot,
    squared_errors,
    steps,
    wrap,
)

BATCH = make_batches(1)[0]


@each_ascent
def test_a_closure_that_returns_nothing_is_refused(method: Method) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model)
    closure = Closure(model, optimizer, make_batches(1)[0])
    refused(optimizer, lambda *samples: (closure(*samples), None)[1], TypeError, "returned None.*`return loss`")


@each_ascent
def test_a_closure_without_backward_is_refused(method: Method) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model)
    losses = Closure(model, optimizer, make_batches(1)[0]).losses
    refused(
        optimizer,
        lambda *samples: losses(*samples).mean(),
        (RuntimeError, TypeError),
        r"loss\.backward\(\)|mean\(\) and backward\(\)",
    )


@each_ascent
def test_a_step_without_a_closure_is_refused_where_something_would_move(method: Method) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model)
    list(steps(model, optimizer, make_batches(1)))
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.0})
    refused(optimizer, None, TypeError, r"optimizer\.step\(closure\)")


@each_kind
def test_gradients_accumulated_before_the_step_are_refused(method: Method) -> None:
    """All microbatches but the last backward before the step, as loops without a closure do."""
    ends = []
    for accumulated in (True, False):
        model = make_model("mlp")
        optimizer = wrap(method, model)
        batches = make_batches(4)
        list(steps(model, optimizer, batches[:2]))
        optimizer.zero_grad()
        if accumulated:
            Closure(model, torch.optim.SGD(model.parameters()), batches[2])()
        losses = Closure(model, optimizer, batches[3]).losses
        if not reads_losses(optimizer):
            if accumulated:
                closure = lambda *samples: ((loss := losses(*samples).mean()).backward(), loss)[1]  # noqa: B023, E731
                refused(optimizer, closure, RuntimeError, "held gradients when .* began")
            continue
        optimizer.step(losses)  # a closure that returns losses leaves zeroing to the step
        ends.append(snapshot(model, optimizer))
    assert not ends or same(*ends)


class Forgetful(Closure):
    """Zeroes no gradients."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.optimizer = types.SimpleNamespace(zero_grad=lambda **_: None)


@pytest.mark.parametrize("name", ["mlp", "dropout"])
@pytest.mark.parametrize("method", [SAM(), SAM(interval=2), LookSAM(k=2), SAM(ascent_fraction=0.5)], ids=str)
def test_a_closure_that_forgets_to_zero_trains_as_one_that_does(method: Method, name: str) -> None:
    ends = []
    for kind in (Closure, Forgetful):
        model = make_model(name)
        optimizer = wrap(method, model)
        torch.manual_seed(3)
        for batch in make_batches(6):
            optimizer.step(kind(model, optimizer, batch))
        ends.append(snapshot(model, optimizer))
    assert same(*ends)


class Sometimes(nn.Module):
    """Uses one of two layers, as a batch says."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.turn = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)]), 0

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[self.turn % 2](x)


@pytest.mark.parametrize("after", [None, True, False], ids=["", "and after the step", "and after it in place"])
@pytest.mark.parametrize("method", [SAM(), LookSAM(k=2), LookSAM(k=3)], ids=str)
def test_zeroing_in_place_trains_like_zeroing_to_none_with_unused_parameters(method: Method, after: bool) -> None:
    ends = []
    for inside in (True, False):
        torch.manual_seed(0)
        model = Sometimes()
        optimizer = wrap(method, model)
        for turn, batch in enumerate(make_batches(7)):
            model.turn = turn // 2
            optimizer.step(Closure(model, optimizer, batch, set_to_none=inside))
            if after is not None and not inside:
                optimizer.zero_grad(set_to_none=after)
        ends.append(snapshot(model, optimizer))
    assert same(*ends)


def test_a_model_that_does_not_own_the_parameters_is_refused() -> None:
    model, head = make_model("mlp"), nn.Linear(3, 1)
    base = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)
    with pytest.raises(ValueError, match=r"SAM.wrap\(model=Sequential\(...\)\): model must own .*; 2 of 8 are not"):
        SAM().wrap(base, model=model)
    SAM().wrap(base, model=nn.ModuleList([model, head]))


def test_the_error_about_wrapping_twice_is_short() -> None:
    model = make_model("mlp")
    with pytest.raises(ValueError, match="already sharpness-aware") as error:
        SAM().wrap(wrap(SAM(), model), model=model)
    assert len(str(error.value)) < 200


def test_the_closure_of_composers_trainer_is_refused() -> None:
    """Its optimizer was wrapped by hand, and the Trainer knows nothing of a second pass."""
    model = make_model("mlp")
    optimizer = wrap(SAM(), model)
    closure = lambda: Closure(model, optimizer, make_batches(1)[0])()  # noqa: E731
    closure.__module__ = "composer.trainer.trainer"
    refused(optimizer, closure, TypeError, r"Trainer\(optimizers=optimizer, algorithms=\[SAM")


def test_numpy_numbers_train_as_pythons_and_are_saved_as_them() -> None:
    ends = []
    for rho, interval in ((0.1, 2), (np.float64(0.1), np.int64(2))):
        model = make_model("mlp")
        optimizer = wrap(SAM(rho=rho, interval=interval), model)
        list(steps(model, optimizer, make_batches(4)))
        ends.append(snapshot(model, optimizer))
    assert same(*ends)
    assert repr(SAM(rho=np.float64(0.1))) == repr(SAM(rho=0.1))


class TwoHeads(nn.Module):
    """Of which a batch may reach one only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.heads, self.turn = nn.Linear(6, 4), nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)]), 0

    def forward(self, x: Tensor) -> Tensor:
        return self.heads[self.turn](self.body(x))


def returns_loss(loss: Tensor) -> Tensor:
    return loss


@pytest.mark.parametrize("returned", [returns_loss, Tensor.detach, Tensor.item], ids=["loss", "detached", "number"])
@pytest.mark.parametrize("method", [None, SAM(rho=0.5), LookSAM(k=2), AESAM(), MomentumSAM()], ids=str)
def test_a_head_that_the_loss_does_not_reach_takes_no_step(method: Method | None, returned: Any) -> None:
    """As in plain PyTorch, and no policy counts a gradient of zero."""
    torch.manual_seed(0)
    model = TwoHeads()
    base = torch.optim.SGD(model.heads[0].parameters(), lr=0.1, momentum=0.9)
    optimizer: Any = base if method is None else method.wrap(base, model=model, total_steps=9)
    memories = []
    for turn in (0, 0, 1, 0, 1):
        model.turn = turn

        def closure() -> Any:
            model.zero_grad()
            loss = squared_errors(model(BATCH[0]), BATCH[1]).mean()
            loss.backward()
            return returned(loss)

        before = snapshot(model, optimizer)
        with torch.enable_grad():
            optimizer.step(closure)
        after = snapshot(model, optimizer)
        if turn == 1:
            assert same(after["model"], before["model"]) and same(after["optimizer"], before["optimizer"])
        if method is not None:
            memories.append({**optimizer.method_state_dict(), "step": None, "sharp": None})
    assert method is None or (memories[2] == memories[1] and memories[4] == memories[3])


@pytest.mark.parametrize("returned", [returns_loss, Tensor.detach, Tensor.item], ids=["loss", "detached", "number"])
def test_a_forgotten_backward_is_refused_whatever_the_closure_returns(returned: Any) -> None:
    model = TwoHeads()
    optimizer = SAM().wrap(torch.optim.SGD(model.heads[0].parameters(), lr=0.1), model=model)
    refused(optimizer, lambda: returned(model(BATCH[0]).mean()), RuntimeError, r"has to call loss\.backward\(\)")
