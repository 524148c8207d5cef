"""The step as a user calls it: closures, groups, and gradients that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_algos import AESAM, SAM, AELookSAM, Method
from tests import references
from tests.cases import (
    Closure,
    distance,
    each_method,
    each_method_on_the_whole_batch,
    make_batches,
    make_model,
    same,
    snapshot,
    steps,
    wrap,
)


@each_method
def test_step_needs_a_closure(method: Method) -> None:
    optimizer = wrap(method, make_model("mlp"))
    with pytest.raises(TypeError, match=r"optimizer\.step\(closure\)"):
        optimizer.step()


@each_method
@pytest.mark.parametrize("base", ["sgd", "momentum", "adamw"])
def test_step_none_is_a_step_of_the_base_alone(method: Method, base: str) -> None:
    """As `torch.distributed.checkpoint` takes it, to have state to load into."""
    ours, plain = make_model("mlp"), make_model("mlp")
    optimizer, alone = wrap(method, ours, base), wrap(None, plain, base)
    [batch] = make_batches(1)
    for model, opt in ((ours, optimizer), (plain, alone)):
        Closure(model, opt, batch)()
        opt.step(None)
    assert distance(ours, plain) == 0.0
    assert optimizer.method_state_dict()["step"] == 0
    list(steps(ours, optimizer, make_batches(3)))
    created = {key for value in optimizer.state_dict()["state"].values() for key in value}
    fresh_model = make_model("mlp")
    fresh = wrap(method, fresh_model, base)
    Closure(fresh_model, fresh, batch)()
    fresh.step(None)
    assert created <= {key for value in fresh.state_dict()["state"].values() for key in value}


@each_method
@pytest.mark.parametrize("model", ["mlp", "batchnorm"])
def test_closures_may_zero_gradients_in_place(method: Method, model: str) -> None:
    models = [make_model(model) for _ in range(2)]
    for trainee, set_to_none in zip(models, (True, False), strict=True):
        optimizer = wrap(method, trainee)
        for batch in make_batches(12):
            optimizer.step(Closure(trainee, optimizer, batch, set_to_none=set_to_none))
    assert distance(*models) == 0.0


@each_method
def test_wrapping_twice_is_refused(method: Method) -> None:
    model = make_model("mlp")
    with pytest.raises(ValueError, match="already sharpness-aware"):
        method.wrap(wrap(method, model), model=model, total_steps=3)


@each_method
def test_an_optimizer_that_calls_the_closure_itself_is_refused(method: Method) -> None:
    model = make_model("mlp")
    with pytest.raises(ValueError, match="LBFGS evaluates the closure itself"):
        method.wrap(torch.optim.LBFGS(model.parameters()), model=model, total_steps=3)


@pytest.mark.parametrize("value", [0, -1, 1.5, "9", True, math.nan], ids=repr)
@each_method
def test_total_steps_is_validated(method: Method, value: Any) -> None:
    model = make_model("mlp")
    with pytest.raises(ValueError, match=r"wrap\(total_steps=.*integer >= 1") as error:
        method.wrap(torch.optim.SGD(model.parameters()), model=model, total_steps=value)
    assert type(method).__name__ in str(error.value)
    assert repr(value) in str(error.value)


@each_method
def test_total_steps_is_required_by_a_schedule_only(method: Method) -> None:
    model = make_model("mlp")
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    if method.parts().policy.reads_progress:
        with pytest.raises(ValueError, match=r"wrap\(total_steps=None\).*integer >= 1"):
            method.wrap(base, model=model)
    else:
        list(steps(model, method.wrap(base, model=model), make_batches(2)))


@pytest.mark.parametrize("method", [AESAM, AELookSAM])
def test_schedule_stays_at_its_end(method: type[Method]) -> None:
    model = make_model("mlp")
    optimizer = wrap(method(lambda_1=9.0, lambda_2=-9.0), model, total_steps=4)
    assert list(steps(model, optimizer, make_batches(12)))[6:] == [1] * 6


@each_method_on_the_whole_batch
def test_metrics_are_those_of_the_step(method: Method) -> None:
    model, plain = make_model("mlp"), make_model("mlp")
    optimizer = wrap(method, model)
    sharp = 0
    for count, batch in enumerate(make_batches(8), 1):
        plain.load_state_dict(model.state_dict())
        Closure(plain, torch.optim.SGD(plain.parameters()), batch)()
        norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in plain.parameters()))
        closure = Closure(model, optimizer, batch)
        optimizer.step(closure)
        sharp += closure.calls == 2
        assert optimizer.metrics["sam/applied"] == closure.calls - 1
        assert optimizer.metrics["sam/fraction"] == sharp / count
        assert optimizer.metrics["sam/grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert optimizer.metrics["sam/nonfinite"] == 0


@each_method
def test_groups_added_during_training_take_part(method: Method) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model[0])
    optimizer._passes._model = model  # the closure runs the whole model
    before = snapshot(model[2])
    batches = make_batches(8)
    list(steps(model, optimizer, batches[:4]))
    assert same(snapshot(model[2]), before)
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.02})
    assert len(optimizer.base_optimizer.param_groups) == 2
    list(steps(model, optimizer, batches[4:]))
    assert not same(snapshot(model[2]), before)


def displacements(method: Method, groups: list[dict]) -> Iterator[list[Tensor]]:
    """The ``epsilon`` of each sharp step for a model's two parameters, each in a group of its own."""
    model = nn.Sequential(nn.Linear(6, 3)).double()
    for group, p in zip(groups, model.parameters(), strict=True):
        group["params"] = [p]
    optimizer = method.wrap(torch.optim.SGD(groups, lr=0.1), model=model, total_steps=5)
    seen: list[list[Tensor]] = []
    model.register_forward_pre_hook(lambda m, _: seen.append([p.detach().clone() for p in m.parameters()]))
    for taken in steps(model, optimizer, make_batches(5, torch.float64)):
        if taken == 2:
            yield [b - a for a, b in zip(*seen, strict=True)]
        seen.clear()


@each_method
@pytest.mark.parametrize(("first", "second"), [(0.3, 0.1), (0.2, 0.0), (0.0, 0.7)])
def test_a_group_has_its_own_radius(method: Method, first: float, second: float) -> None:
    torch.manual_seed(0)
    groups = displacements(method, [{"rho": first}, {"rho": second}])
    ours = next(groups)
    torch.manual_seed(0)
    default = next(displacements(method, [{}, {}]))
    rho = method.parts().perturbation.rho
    for epsilon, usual, radius in zip(ours, default, (first, second), strict=True):
        # The differences of weights are exact to their own rounding only.
        torch.testing.assert_close(epsilon, usual * (radius / rho), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("rho", [-0.1, math.nan, math.inf, "0.1", True, None], ids=repr)
def test_a_bad_radius_of_a_group_is_refused(rho: Any) -> None:
    model = make_model("mlp")
    with pytest.raises(ValueError, match=r"rho=.*rho must be a finite number >= 0"):
        wrap(SAM(), model, rho=rho)
    optimizer = wrap(SAM(), model[0])
    with pytest.raises(ValueError, match=r"rho=.*rho must be a finite number >= 0"):
        optimizer.add_param_group({"params": model[2].parameters(), "rho": rho})
    assert len(optimizer.param_groups) == 1


def test_own_radius_agrees_with_the_equations() -> None:
    def rule(t: int, w: list[Tensor], g: list[Tensor], at: references.At) -> list[Tensor]:
        epsilon = references.pnorm_epsilon(g, 1.0, 2)
        return at([0.3 * epsilon[0], 0.3 * epsilon[1], 0 * epsilon[2], 0 * epsilon[3]])

    ours, theirs = (make_model("mlp", torch.float64) for _ in range(2))
    groups = [{"params": ours[0].parameters(), "rho": 0.3}, {"params": ours[2].parameters(), "rho": 0}]
    batches = make_batches(20, torch.float64)
    references.train(theirs, batches, rule, references.sgd(0.05))
    list(steps(ours, SAM().wrap(torch.optim.SGD(groups, lr=0.05), model=ours), batches))
    assert distance(ours, theirs) <= 1e-12


class Exploding(Closure):
    """Gives gradients that are not finite from one of its calls on."""

    def __init__(self, *args: Any, call: int, factor: float) -> None:
        super().__init__(*args)
        self.call, self.factor = call, factor
        self.loss = lambda out, y: (out - y).square().mean() * (factor if self.calls >= call else 1)


def explode(optimizer: torch.optim.Optimizer, model: nn.Module, call: int, factor: float, count: int) -> int:
    """Take steps until one has had such gradients; the number of its passes."""
    for batch in make_batches(count):
        before = snapshot(model, optimizer)
        closure = Exploding(model, optimizer, batch, call=call, factor=factor)
        optimizer.step(closure)
        if closure.calls >= call:
            break
    if optimizer._nonfinite == "skip":
        assert same(snapshot(model, optimizer)["model"], before["model"])
        assert same(snapshot(model, optimizer)["optimizer"], before["optimizer"])
        assert optimizer.method_state_dict() == before["method"] | {"nonfinite": 1}
    return closure.calls


@each_method
@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("call", [1, 2], ids=["first pass", "second pass"])
def test_skip_leaves_everything_but_the_count(method: Method, call: int, factor: float) -> None:
    model = make_model("mlp")
    optimizer = wrap(replace(method, nonfinite="skip"), model)
    list(steps(model, optimizer, make_batches(2)))
    assert explode(optimizer, model, call, factor, count=20) >= call
    assert optimizer.metrics["sam/nonfinite"] == 1
    list(steps(model, optimizer, make_batches(3)))
    assert all(p.isfinite().all() for p in model.parameters())


@each_method
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_pass_hands_it_on_but_statistics_stay_finite(method: Method, factor: float) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model, "sgd")
    list(steps(model, optimizer, make_batches(2)))
    before = optimizer.method_state_dict()
    weights = snapshot(model)
    explode(optimizer, model, 1, factor, count=1)
    memory = optimizer.method_state_dict()
    assert memory["step"] == 3
    assert optimizer.metrics["sam/nonfinite"] == 1
    assert all(math.isfinite(value) for value in memory["policy"].values() if isinstance(value, float))
    assert not all(p.isfinite().all() for p in model.parameters())
    if method.parts().policy.reads_gradient:
        assert memory["policy"] == before["policy"]
        model.load_state_dict(weights["model"], strict=False)
        list(steps(model, optimizer, make_batches(2)))
        assert all(math.isfinite(value) for value in optimizer.metrics.values())
