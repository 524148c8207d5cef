"""The step as a user calls it: closures, groups, schedules and figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_algos import AESAM, SAM, AELookSAM, Cosine, Method
from tests import references
from tests.cases import (
    Closure,
    distance,
    each_ascent,
    each_kind,
    each_kind_and_base,
    each_method,
    each_method_for_any_model,
    make_batches,
    make_model,
    same,
    second_pass,
    snapshot,
    steps,
    watch,
    wrap,
)


@each_ascent
def test_step_needs_a_closure(method: Method) -> None:
    optimizer = wrap(method, make_model("mlp"))
    with pytest.raises(TypeError, match=r"optimizer\.step\(closure\)"):
        optimizer.step()


@each_kind_and_base
def test_step_none_where_nothing_moves_creates_the_state(method: Method, base: str) -> None:
    """As `torch.distributed.checkpoint` takes it, to have state to load into."""
    model = make_model("mlp")
    optimizer, before = wrap(method, model, base), snapshot(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step(None)
    assert same(snapshot(model), before)
    assert optimizer.method_state_dict()["step"] == 0
    created = {key for value in optimizer.state_dict()["state"].values() for key in value}
    trained_model = make_model("mlp")
    trained = wrap(method, trained_model, base)
    list(steps(trained_model, trained, make_batches(4)))
    assert {key for value in trained.state_dict()["state"].values() for key in value} <= created


@each_method
def test_closures_may_zero_gradients_in_place(method: Method) -> None:
    models = [make_model("batchnorm") for _ in range(2)]
    for trainee, set_to_none in zip(models, (True, False), strict=True):
        optimizer = wrap(method, trainee)
        for batch in make_batches(12):
            optimizer.step(Closure(trainee, optimizer, batch, set_to_none=set_to_none))
    assert distance(*models) == 0.0


@pytest.mark.parametrize("method", [SAM(), AESAM()], ids=str)
def test_an_optimizer_that_calls_the_closure_itself_is_refused(method: Method) -> None:
    model = make_model("mlp")
    with pytest.raises(ValueError, match="LBFGS evaluates the closure itself"):
        method.wrap(torch.optim.LBFGS(model.parameters()), model=model, total_steps=3)


@pytest.mark.parametrize("value", [0, -1, 1.5, "9", True, math.nan], ids=repr)
@pytest.mark.parametrize("method", [SAM(), AESAM()], ids=str)
def test_total_steps_is_validated(method: Method, value: Any) -> None:
    model = make_model("mlp")
    with pytest.raises(ValueError, match=r"wrap\(total_steps=.*integer >= 1") as error:
        method.wrap(torch.optim.SGD(model.parameters()), model=model, total_steps=value)
    assert type(method).__name__ in str(error.value)
    assert repr(value) in str(error.value)


@each_method
def test_total_steps_is_required_by_a_schedule_only(method: Method) -> None:
    model = make_model("mlp")
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if method.composition().reader("reads_progress"):
        with pytest.raises(ValueError, match=r"wrap\(total_steps=None\).*integer >= 1"):
            method.wrap(base, model=model)
    else:
        list(steps(model, method.wrap(base, model=model), make_batches(2)))


@pytest.mark.parametrize("method", [AESAM, AELookSAM])
def test_schedule_stays_at_its_end(method: type[Method]) -> None:
    model = make_model("mlp")
    optimizer = wrap(method(lambda_1=9.0, lambda_2=-9.0), model, total_steps=4)
    with pytest.warns(UserWarning, match="Step 5 is beyond total_steps=4"):
        assert list(steps(model, optimizer, make_batches(12)))[6:] == [1] * 6


@pytest.mark.usefixtures("without_looks")
@each_method
def test_metrics_are_those_of_the_step(method: Method) -> None:
    """Counted in what the model really ran, which on some step is a pass at displaced weights."""
    model, plain = make_model("mlp"), make_model("mlp")
    optimizer, passes = wrap(method, model), watch(model)
    sharp = 0
    for count, (x, y) in enumerate(make_batches(8), 1):
        passes.clear()
        clean = nn.utils.parameters_to_vector(model.parameters()).detach()
        optimizer.step(Closure(model, optimizer, (x, y)))
        climbed = any(seen.gradient and not torch.equal(seen.weights, clean) for seen in passes)
        sharp += climbed
        nn.utils.vector_to_parameters(passes[0].weights, plain.parameters())
        first = slice(passes[0].samples)
        Closure(plain, torch.optim.SGD(plain.parameters()), (x[first], y[first]))()
        norm = math.sqrt(sum(p.grad.double().square().sum().item() for p in plain.parameters()))
        metrics = optimizer.metrics
        assert metrics["sam/applied"] == climbed
        assert metrics["sam/fraction"] == sharp / count
        assert metrics["sam/gradients"] == pytest.approx(sum(p.samples for p in passes if p.gradient) / len(x))
        assert metrics.get("sam/forwards", 0.0) == sum(not p.gradient for p in passes)
        assert metrics["sam/grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert metrics["sam/nonfinite"] == 0
    assert sharp


@each_kind
def test_groups_added_during_training_take_part(method: Method) -> None:
    model = make_model("mlp")
    base = torch.optim.SGD(model[:2].parameters(), lr=0.05, momentum=0.9)
    optimizer = method.wrap(base, model=model, total_steps=8)
    before = snapshot(model[2])
    batches = make_batches(8)
    list(steps(model, optimizer, batches[:4]))
    assert same(snapshot(model[2]), before)
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.02})
    assert len(optimizer.base_optimizer.param_groups) == 2
    list(steps(model, optimizer, batches[4:]))
    assert not same(snapshot(model[2]), before)


def displacements(method: Method, groups: list[dict]) -> Iterator[list[Tensor]]:
    """Where the first displaced pass of each step is, for a model's two parameters, each in a group of its own."""
    model = nn.Sequential(nn.Linear(6, 3)).double()
    params = list(model.parameters())
    for group, p in zip(groups, params, strict=True):
        group["params"] = [p]
    base = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    optimizer, passes = method.wrap(base, model=model, total_steps=5), watch(model)
    for batch in make_batches(5, torch.float64):
        passes.clear()
        clean = nn.utils.parameters_to_vector(params).detach()
        optimizer.step(Closure(model, optimizer, batch))
        if optimizer.metrics["sam/applied"]:
            epsilon = passes[second_pass(optimizer) - 1].weights - clean
            yield list(epsilon.split([p.numel() for p in params]))


@each_method_for_any_model
def test_a_group_has_its_own_radius(method: Method) -> None:
    displaced_by_radii_of_groups(method, 0.3, 0.1)


@each_ascent
@pytest.mark.parametrize(("first", "second"), [(0.2, 0.0), (0.0, 0.7)])
def test_a_group_with_radius_zero_stays(method: Method, first: float, second: float) -> None:
    displaced_by_radii_of_groups(method, first, second)


def displaced_by_radii_of_groups(method: Method, first: float, second: float) -> None:
    torch.manual_seed(0)
    groups = displacements(method, [{"rho": first}, {"rho": second}])
    ours = next(groups)
    torch.manual_seed(0)
    default = next(displacements(method, [{}, {}]))
    rho = method.composition().perturbation.rho
    rho = rho.start if isinstance(rho, Cosine) else rho
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
        return at([radius * e for radius, e in zip((0.3, 0.3, 0, 0, 0, 0), epsilon, strict=True)])

    ours, theirs = (make_model("mlp", torch.float64) for _ in range(2))
    groups = [{"params": ours[0].parameters(), "rho": 0.3}, {"params": ours[1:].parameters(), "rho": 0}]
    batches = make_batches(20, torch.float64)
    references.train(theirs, batches, rule, references.sgd(0.05))
    list(steps(ours, SAM().wrap(torch.optim.SGD(groups, lr=0.05), model=ours), batches))
    assert distance(ours, theirs) <= 1e-12
