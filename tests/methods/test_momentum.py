"""Momentum-SAM finds the base optimizer's momentum, or says that it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sam_algos import LookSAM, Momentum, MomentumSAM, SharpnessAware
from tests.cases import Closure, make_batches, make_model, refused, steps, train, watch


class Renamed(torch.optim.SGD):
    """SGD whose momentum has another name, or another form, in its state."""

    NAME = "momentum"

    def __init__(self, params: Any, momentum: float = 0.9) -> None:
        super().__init__(params, lr=0.05, momentum=momentum)

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for state in self.state.values():
            state["momentum_buffer"] = self.unchanged(state.pop(self.NAME))
        super().step()
        for state in self.state.values():
            state[self.NAME] = self.changed(state.pop("momentum_buffer"))

    def changed(self, value: Any) -> Any:
        return value

    unchanged = changed


class Moments(Renamed):
    NAME = "moments"


class Unusual(Renamed):
    NAME = "mean_of_gradients"


class Velocity(Renamed):
    """Its velocity points downhill."""

    NAME = "velocity"

    def changed(self, value: Any) -> Any:
        return -value

    unchanged = changed


class Flat(Renamed):
    """Its momentum has another shape than the parameter."""

    NAME = "momentum"

    def changed(self, value: Any) -> Any:
        return {"shape": value.shape, "values": value} if value.ndim < 2 else value.T

    def unchanged(self, value: Any) -> Any:
        return value["values"] if isinstance(value, dict) else value.T


class ScheduleFree(torch.optim.Optimizer):
    """Schedule-free SGD as far as its state goes: a second sequence of weights, and no average of gradients."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.05, "momentum": 0.9})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for p in self.param_groups[0]["params"]:
            z = self.state[p].setdefault("z", p.clone())
            z.sub_(p.grad, alpha=0.05)
            p.lerp_(z, 0.1)


def trained(method: MomentumSAM, kind: type, count: int = 5) -> Any:
    model = make_model("mlp", torch.float64)
    optimizer = method.wrap(kind(model.parameters()), model=model)
    list(steps(model, optimizer, make_batches(count, torch.float64)))
    assert optimizer.metrics["sam/applied"] == 1.0
    return model


def weights(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize(
    ("kind", "buffer"), [(Renamed, None), (Moments, None), (Unusual, "mean_of_gradients"), (Velocity, "-velocity")]
)
def test_momentum_under_another_name_is_sgds(kind: type, buffer: str | None) -> None:
    sgd = make_model("mlp", torch.float64)
    train(MomentumSAM(rho=0.5), sgd, make_batches(5, torch.float64))
    assert torch.equal(weights(trained(MomentumSAM(rho=0.5, buffer=buffer), kind)), weights(sgd))


def test_the_other_sign_is_another_method() -> None:
    ends = [weights(trained(MomentumSAM(rho=0.5, buffer=name), Velocity)) for name in ("velocity", "-velocity")]
    assert float((ends[0] - ends[1]).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("kind", "buffer", "found"),
    [
        (ScheduleFree, None, "none under a known name.*it has z"),
        (Unusual, None, "none under a known name.*it has mean_of_gradients.*buffer='...'"),
        (Unusual, "exp_avg", "none under buffer='exp_avg'.*it has mean_of_gradients"),
        (Flat, None, "none under a known name.*it has momentum"),
    ],
)
def test_a_state_without_momentum_is_refused_as_soon_as_it_is_there(kind: type, buffer: str | None, found: str) -> None:
    model = make_model("mlp")
    optimizer = MomentumSAM(buffer=buffer).wrap(kind(model.parameters()), model=model)
    batches = make_batches(2)
    optimizer.step(Closure(model, optimizer, batches[0]))
    refused(optimizer, Closure(model, optimizer, batches[1]), ValueError, found)


@pytest.mark.parametrize(
    "base",
    [
        lambda params: torch.optim.SGD(params, lr=0.1),
        lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.0),
        lambda params: torch.optim.Adam(params, betas=(0.0, 0.9)),
        lambda params: torch.optim.RMSprop(params),
        lambda params: torch.optim.Adagrad(params),
        lambda params: torch.optim.SGD([{"params": params, "momentum": 0.0}], lr=0.1, momentum=0.9),
    ],
)
def test_an_optimizer_whose_options_say_that_it_has_none_is_refused_when_wrapped(base: Any) -> None:
    model = make_model("mlp")
    with pytest.raises(ValueError, match="must have momentum to climb against"):
        MomentumSAM().wrap(base(list(model.parameters())), model=model)


def test_the_momentum_of_each_parameter_is_found_under_its_own_name() -> None:
    """As of optimizers that treat matrices in one way and the rest in another."""
    model = make_model("mlp")
    [*params] = model.parameters()
    base = torch.optim.SGD(params, lr=0.05, momentum=0.9)
    optimizer = MomentumSAM(rho=0.5).wrap(base, model=model)
    list(steps(model, optimizer, make_batches(1)))
    for p in params[:2]:
        base.state[p]["exp_avg"] = base.state[p].pop("momentum_buffer")
    seen, before = watch(model), weights(model)
    optimizer.step(Closure(model, optimizer, make_batches(1)[0]))
    assert bool((seen[0].weights != before).all())


@pytest.mark.parametrize(("weight", "average"), [(torch.float32, torch.float64), (torch.bfloat16, torch.float32)])
def test_momentum_in_another_precision_climbs(weight: torch.dtype, average: torch.dtype) -> None:
    ends = []
    for dtype in (weight, average):
        model = make_model("mlp", weight)
        base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        optimizer = MomentumSAM(rho=0.5).wrap(base, model=model)
        [batch] = make_batches(1, weight)
        optimizer.step(Closure(model, optimizer, batch))
        for state in base.state.values():
            state["momentum_buffer"] = state["momentum_buffer"].to(dtype)
        seen = watch(model)
        optimizer.step(lambda batch=batch, model=model: model(batch[0]).square().mean(1))
        assert next(model.parameters()).dtype == weight
        ends.append(seen[0].weights)
    assert torch.equal(*ends)


def test_vectors_that_another_method_left_in_the_state_are_no_reason_to_refuse() -> None:
    model = make_model("mlp")
    base = torch.optim.SGD(model.parameters(), lr=0.05)
    other = LookSAM(k=1).wrap(base, model=model)
    list(steps(model, other, make_batches(1)))
    base.param_groups[0]["momentum"] = 0.9
    optimizer = MomentumSAM().wrap(base, model=model)
    optimizer.load_method_state_dict(other.method_state_dict())
    assert list(steps(model, optimizer, make_batches(3))) == [1, 2, 1]  # one to see that the weights are seen
    assert optimizer.metrics["sam/applied"] == 1.0


def test_the_part_takes_the_name_too() -> None:
    model = make_model("mlp")
    method = SharpnessAware(perturbation=Momentum(rho=0.5, buffer="mean_of_gradients"))
    optimizer = method.wrap(Unusual(model.parameters()), model=model)
    list(steps(model, optimizer, make_batches(2)))
    assert optimizer.metrics["sam/applied"] == 1.0


def test_a_group_that_stays_needs_no_momentum() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    groups = [
        {"params": model[0].parameters(), "momentum": 0.9},
        {"params": model[1].parameters(), "momentum": 0.0, "rho": 0.0},
    ]
    optimizer = MomentumSAM(rho=0.5).wrap(torch.optim.RMSprop(groups, lr=0.01), model=model)
    x = torch.randn(8, 4)
    for _ in range(3):
        optimizer.zero_grad()
        optimizer.step(lambda: model(x).square().mean(1))
    assert optimizer.metrics["sam/applied"] == 1.0
