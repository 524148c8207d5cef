"""A radius is a part: it may follow the gradient, stay on the device, and remember numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from sam_algos import AESAM, SAM, MomentumSAM, VaSSO
from sam_algos.parts import Memory, Positive, Rho, Schedule, Step
from tests.cases import Closure, make_batches, make_model, wrap


@dataclass(frozen=True, repr=False)
class OfGradient(Schedule):
    """A share of the gradient's length, left on the device."""

    reads_gradient: ClassVar[bool] = True

    share: Positive = 0.1

    def radius(self, step: Step) -> torch.Tensor:
        return self.share * step.gradient.norm()


@dataclass(frozen=True, repr=False)
class Halved(Schedule):
    """Half of what it was in the step before."""

    start: Positive = 0.4

    def initial(self) -> Memory:
        return {"radius": self.start}

    def radius(self, step: Step) -> Rho:
        now = step.memory["radius"]
        return Rho(now, {"radius": now / 2})


@dataclass(frozen=True, repr=False)
class Tensor(Schedule):
    """A number, as a tensor."""

    rho: Positive = 0.05

    def radius(self, step: Step) -> torch.Tensor:
        return torch.tensor(self.rho)


def test_a_radius_may_follow_the_gradient_at_no_further_pass() -> None:
    model, batch = make_model("mlp", torch.float64), make_batches(1, torch.float64)[0]
    optimizer: Any = wrap(SAM(rho=OfGradient(0.1)), model, "sgd")
    before = [p.detach().clone() for p in model.parameters()]

    def gradient(weights: list[torch.Tensor]) -> list[torch.Tensor]:
        named = dict(zip(dict(model.named_parameters()), weights, strict=True))
        named = {name: w.requires_grad_() for name, w in named.items()}
        loss = (torch.func.functional_call(model, named, batch[0]) - batch[1]).square().mean()
        return list(torch.autograd.grad(loss, list(named.values())))

    g = gradient([w.clone() for w in before])
    g_s = gradient([w + 0.1 * d for w, d in zip(before, g, strict=True)])  # rho g / |g| with rho = 0.1 |g|
    closure = Closure(model, optimizer, batch)
    optimizer.step(closure)
    for p, w, d in zip(model.parameters(), before, g_s, strict=True):
        assert torch.allclose(p, w - 0.05 * d, rtol=1e-10, atol=1e-12)
    assert optimizer.metrics["sam/rho"] == pytest.approx(0.1 * math.sqrt(sum(d.square().sum().item() for d in g)))
    assert optimizer.metrics["sam/gradients"] == 2


def test_a_radius_that_follows_the_gradient_costs_a_plain_step_nothing() -> None:
    model = make_model("mlp")
    optimizer: Any = wrap(AESAM(rho=OfGradient(), lambda_1=9.0, lambda_2=9.0), model)
    for batch in make_batches(3):
        optimizer.step(Closure(model, optimizer, batch))
        assert optimizer.metrics["sam/gradients"] == 1
        assert optimizer.metrics["sam/rho"] == pytest.approx(0.1 * optimizer.metrics["sam/grad_norm"])


@pytest.mark.parametrize("own", [{}, {"rho": 0.2}], ids=["one radius", "a group has its own"])
def test_a_radius_on_the_device_is_the_number(own: dict[str, float]) -> None:
    ends = []
    for rho in (0.05, Tensor(0.05)):
        model = make_model("mlp")
        first, *others = model.parameters()
        base = torch.optim.SGD([{"params": [first], **own}, {"params": others}], lr=0.05)
        optimizer: Any = SAM(rho=rho).wrap(base, model=model)
        for batch in make_batches(3):
            optimizer.step(Closure(model, optimizer, batch))
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("method", [SAM(rho=Halved()), VaSSO(rho=Halved()), MomentumSAM(rho=Halved())], ids=repr)
def test_a_radius_remembers_numbers_of_the_steps_that_succeed(method: Any) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model)
    found = []
    for batch in make_batches(3):
        failing = Closure(model, optimizer, batch, loss=lambda *_: 1 / 0)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ZeroDivisionError):
            optimizer.step(failing)
        optimizer.step(Closure(model, optimizer, batch))
        found.append(optimizer.metrics["sam/rho"])
    assert found == [0.4, 0.2, 0.1]
    assert optimizer.method_state_dict()["perturbation"]["radius"] == 0.05


def test_what_a_radius_remembers_survives_a_checkpoint() -> None:
    model = make_model("mlp")
    first, second = (wrap(SAM(rho=Halved()), model) for _ in range(2))
    first.step(Closure(model, first, make_batches(1)[0]))
    second.load_method_state_dict(first.method_state_dict())
    second.step(Closure(model, second, make_batches(1)[0]))
    assert second.metrics["sam/rho"] == 0.2
