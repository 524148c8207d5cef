"""A base optimizer that maximises: whatever it climbs, the perturbation goes against it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_algos import ESAM, SAM, LookSAM, Method
from sam_algos.core.passes.selection import EVERYTHING, Selection
from tests.cases import (
    Batch,
    Closure,
    distance,
    each_ascent,
    each_kind_and_base,
    each_method,
    make_batches,
    make_model,
    reads_losses,
    refused,
    same,
    snapshot,
    squared_errors,
    takes,
    wrap,
)

BASES: dict[str, Any] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw, foreach": lambda groups: torch.optim.AdamW(groups, lr=0.01, foreach=True),
    "adamw, fused": lambda groups: torch.optim.AdamW(groups, lr=0.01, fused=True),
}


def minus_squared_errors(out: Tensor, y: Tensor) -> Tensor:
    return -squared_errors(out, y)


@each_kind_and_base
def test_maximising_minus_the_loss_is_minimising_the_loss(method: Method, base: str) -> None:
    models, ends = [make_model("batchnorm") for _ in range(2)], []
    for model, maximize in zip(models, (False, True), strict=True):
        optimizer = wrap(method, model, base, total_steps=8, maximize=maximize)
        torch.manual_seed(3)
        for batch in make_batches(8):
            loss = minus_squared_errors if maximize else squared_errors
            optimizer.step(Closure(model, optimizer, batch, loss=loss))
        ends.append((snapshot(model, optimizer)["method"], optimizer.state_dict()["state"]))
    assert distance(*models) == 0.0
    assert same(*ends)


class Halves(nn.Module):
    """Two networks that have nothing to do with one another, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.halves = nn.ModuleList([make_model("mlp", seed=seed) for seed in (0, 1)])

    def losses(self, batch: Batch, signs: tuple[int, int], samples: Selection = EVERYTHING) -> Tensor:
        x, y = samples(batch)
        both = [sign * squared_errors(half(x), y) for sign, half in zip(signs, self.halves, strict=True)]
        return torch.stack(both).sum(0)


@each_method
def test_a_maximised_group_climbs_the_other_way_and_other_groups_as_before(method: Method) -> None:
    maximised_group_climbs_the_other_way(method, "sgd")


@each_ascent
@pytest.mark.parametrize("base", ["adamw, foreach", "adamw, fused"])
def test_a_maximised_group_climbs_the_other_way_whatever_the_optimizer(method: Method, base: str) -> None:
    maximised_group_climbs_the_other_way(method, base)


def maximised_group_climbs_the_other_way(method: Method, base: str) -> None:
    """Two losses added up, one of them with its sign changed and its group with it."""
    models = [Halves(), Halves()]
    for model, maximize in zip(models, (False, True), strict=True):
        halves = [list(half.parameters()) for half in model.halves]
        groups = [{"params": halves[0]}, {"params": halves[1], "maximize": maximize}]
        bare = BASES[base](groups)
        if not takes(method, bare) or method.composition().reader("reads_losses"):
            pytest.skip("this method cannot be had around this optimizer, or reads losses: see below")
        optimizer = method.wrap(bare, model=model, total_steps=5)
        for batch in make_batches(5):

            def closure(samples: Selection = EVERYTHING, batch: Batch = batch) -> Tensor:
                optimizer.zero_grad()  # noqa: B023
                loss = model.losses(batch, (1, -1 if maximize else 1), samples).mean()  # noqa: B023
                loss.backward()
                return loss

            optimizer.step(closure)
    assert distance(*models) == 0.0


def test_losses_of_samples_have_no_sign_where_groups_are_mixed() -> None:
    model = make_model("mlp")
    groups = [{"params": model[0].parameters()}, {"params": model[1:].parameters(), "maximize": True}]
    optimizer = ESAM().wrap(torch.optim.SGD(groups, lr=0.1), model=model)
    assert reads_losses(optimizer)
    closure = Closure(model, optimizer, make_batches(1)[0])
    refused(optimizer, closure, ValueError, r"maximize=True.*some.*groups.*loss of each sample")


def test_the_option_may_be_the_optimizers_own_attribute() -> None:
    """As in pytorch_optimizer."""

    class Own(torch.optim.SGD):
        def __init__(self, params: Any) -> None:
            super().__init__(params, lr=0.05)
            for group in self.param_groups:
                del group["maximize"]
            self.maximize = True

        def step(self, closure: None = None) -> None:
            with torch.no_grad():
                for p in (p for group in self.param_groups for p in group["params"]):
                    p.add_(p.grad, alpha=0.05)

    models = [make_model("mlp") for _ in range(2)]
    bases = [torch.optim.SGD(models[0].parameters(), lr=0.05), Own(models[1].parameters())]
    losses = [squared_errors, minus_squared_errors]
    for model, base, loss in zip(models, bases, losses, strict=True):
        optimizer = SAM(rho=0.3).wrap(base, model=model)
        for batch in make_batches(4):
            optimizer.step(Closure(model, optimizer, batch, loss=loss))
    assert distance(*models) == 0.0


@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
def test_backward_leaves_the_gradient_that_is_to_be_climbed(scaled: bool) -> None:
    """What clips and steps afterwards sees the gradient of the loss, as it would without a method."""
    gradients = []
    for maximize, sign in ((False, 1), (True, -1)):
        model = make_model("mlp")
        optimizer = wrap(LookSAM(k=2), model, maximize=maximize)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
        for batch in make_batches(4):

            def closure(batch: Batch = batch) -> Tensor:
                optimizer.zero_grad()  # noqa: B023
                loss = sign * squared_errors(model(batch[0]), batch[1]).mean()  # noqa: B023
                (loss if scaler is None else scaler.scale(loss)).backward()  # noqa: B023
                return loss

            optimizer.backward(closure, scaler=scaler)
            gradients.append(torch.cat([sign * p.grad.flatten() for p in model.parameters()]))
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(gradients[:4], gradients[4:], strict=True))
