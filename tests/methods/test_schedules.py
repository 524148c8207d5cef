"""A radius that changes over training: what it is on every step, for every method, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from sam_algos import AESAM, METHODS, SAM, Cosine, Linear, Method, Proportional, Schedule
from tests import references
from tests.cases import Closure, distance, make_batches, make_model, refused, snapshot, train, wrap

T = 10


def radii(method: Method, steps: int = T, schedule: Callable[[Any], Any] | None = None, **group: Any) -> list[float]:
    """The radius that each step logs, with a schedule of the learning rate if there is one."""
    model = make_model("mlp")
    optimizer = wrap(method, model, total_steps=T, **group)
    scheduler = None if schedule is None else schedule(optimizer)
    found = []
    for batch in make_batches(steps):
        optimizer.step(Closure(model, optimizer, batch))
        found.append(optimizer.metrics["sam/rho"])
        if scheduler is not None:
            scheduler.step()
    return found


def test_linear_is_a_line() -> None:
    assert radii(SAM(rho=Linear(0.1, 0.3))) == pytest.approx([0.1 + 0.2 * t / T for t in range(T)])


def test_cosine_is_half_a_cosine() -> None:
    expected = [0.1 + 0.4 * (1 + math.cos(math.pi * t / T)) / 2 for t in range(T)]
    assert radii(SAM(rho=Cosine(0.5, 0.1))) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", [Linear, Cosine])
def test_beyond_the_end_it_stays_there(schedule: type[Any]) -> None:
    with pytest.warns(UserWarning, match=f"Step {T + 1} is beyond total_steps={T}"):
        assert radii(SAM(rho=schedule(0.3, 0.1)), T + 3)[T:] == [0.1] * 3


RATES: dict[str, tuple[Callable[[Any], Any], list[float]]] = {
    "decay": (lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, T), [1 - t / T for t in range(T)]),
    "warm-up": (
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: min(1, (t + 1) / 4)),
        [min(1, (t + 1) / 4) for t in range(T)],
    ),
    "above its start": (lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: 1.0 + t), [1.0] * T),
}


@pytest.mark.parametrize("name", RATES)
def test_proportional_follows_the_learning_rate(name: str) -> None:
    schedule, share = RATES[name]
    found = radii(SAM(rho=Proportional(0.5, 0.1)), schedule=schedule)
    assert found == pytest.approx([0.1 + 0.4 * x for x in share])
    assert all(0.1 <= rho <= 0.5 for rho in found)


def test_a_cycle_has_its_peak() -> None:
    cycle = lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=T, cycle_momentum=False)  # noqa: E731
    found = radii(SAM(rho=Proportional(0.5)), schedule=cycle)
    assert max(found) == pytest.approx(0.5, rel=0.1)
    assert found[0] == pytest.approx(0.5 / 25)


def test_its_ends_can_be_given() -> None:
    assert radii(SAM(rho=Proportional(0.5, lr_max=0.1)), 1) == pytest.approx([0.25])  # lr is 0.05
    assert radii(SAM(rho=Proportional(0.5, 0.1, lr_max=0.09, lr_min=0.01)), 1) == pytest.approx([0.3])
    assert radii(SAM(rho=Proportional(0.5, 0.1, lr_max=0.09, lr_min=0.07)), 1) == [0.1]


def test_a_tensor_may_be_the_learning_rate() -> None:
    model = make_model("mlp")
    base = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01), capturable=False, foreach=False)
    optimizer = SAM(rho=Proportional(0.5)).wrap(base, model=model)
    base.param_groups[0]["lr"].mul_(0.5)
    base.param_groups[0]["initial_lr"] = torch.tensor(0.01)
    optimizer.step(Closure(model, optimizer, make_batches(1)[0]))
    assert optimizer.metrics["sam/rho"] == pytest.approx(0.25)


@pytest.mark.parametrize("name", METHODS)
def test_a_schedule_that_stands_still_is_the_number(name: str) -> None:
    """To the last bit, for every method; and one that moves is not."""
    ends = []
    usual = METHODS[name]().rho
    for rho in (usual, Linear(usual, usual), Cosine(usual, usual), Proportional(usual), Linear(usual, 0.5 * usual)):
        model = make_model("mlp")
        train(replace(METHODS[name](), rho=rho), model, make_batches(T))
        ends.append(model)
    assert [distance(ends[0], end) for end in ends[1:4]] == [0.0] * 3
    assert distance(ends[0], ends[4]) > 1e-9


def test_agrees_with_the_equations() -> None:
    def rule(t: int, w: Any, g: Any, at: references.At) -> Any:
        return at(references.pnorm_epsilon(g, 0.5 * (1 + math.cos(math.pi * t / T)) / 2, 2))

    ours, theirs = (make_model("mlp", torch.float64) for _ in range(2))
    batches = make_batches(T, torch.float64)
    references.train(theirs, batches, rule, references.sgd(0.05, momentum=0.9))
    train(SAM(rho=Cosine(0.5, 0.0)), ours, batches)
    assert distance(ours, theirs) <= 1e-12


def test_a_groups_own_radius_takes_its_place() -> None:
    """In a group that has one; the others follow the schedule."""
    ends = []
    for rho in (0.2, Linear(10.0, 0.0)):
        model = make_model("mlp")
        optimizer = wrap(SAM(rho=rho), model, total_steps=T, rho=0.2)
        for batch in make_batches(3):
            optimizer.step(Closure(model, optimizer, batch))
        ends.append(model)
    assert distance(*ends) == 0.0


def test_every_step_logs_it_plain_ones_too() -> None:
    assert radii(AESAM(rho=Linear(0.1, 0.3), lambda_1=1e9, lambda_2=1e9)) == pytest.approx(
        [0.1 + 0.2 * t / T for t in range(T)]
    )


def test_a_number_is_not_logged() -> None:
    model = make_model("mlp")
    optimizer = wrap(SAM(), model)
    optimizer.step(Closure(model, optimizer, make_batches(1)[0]))
    assert "sam/rho" not in optimizer.metrics


@pytest.mark.parametrize("schedule", [Linear(), Cosine()])
def test_what_follows_progress_needs_the_number_of_steps(schedule: Schedule) -> None:
    model = make_model("mlp")
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"SAM.wrap\(total_steps=None\)"):
        SAM(rho=schedule).wrap(base, model=model)
    SAM(rho=Proportional()).wrap(base, model=model)


@pytest.mark.parametrize("rho", [-1e-9, -1.0, math.nan, math.inf, "linear", None, True, Linear], ids=repr)
def test_what_is_no_radius_is_refused(rho: Any) -> None:
    with pytest.raises(ValueError) as error:
        SAM(rho=rho)
    assert str(error.value) == (f"SAM(rho={rho!r}): rho must be a finite number >= 0, or a Schedule.")


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "start": (lambda: Linear(-0.1), "Linear(start=-0.1): start must be a finite number >= 0."),
    "end": (lambda: Cosine(0.1, math.inf), "Cosine(end=inf): end must be a finite number >= 0."),
    "rho_min": (lambda: Proportional(0.1, 0.2), "Proportional(rho_min=0.2): rho_min must be at most rho, 0.1."),
    "lr_max": (lambda: Proportional(lr_max=0), "Proportional(lr_max=0): lr_max must be a finite number > 0, or None."),
    "lr_min": (
        lambda: Proportional(lr_max=0.1, lr_min=0.1),
        "Proportional(lr_min=0.1): lr_min must be below lr_max, 0.1.",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_schedule_without_sense_is_refused(name: str) -> None:
    make, message = WRONG[name]
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value) == message


def test_a_lowest_rate_above_the_optimizers_is_refused_and_changes_nothing() -> None:
    model = make_model("mlp")
    optimizer = wrap(SAM(rho=Proportional(lr_min=1.0)), model)
    refused(optimizer, Closure(model, optimizer, make_batches(1)[0]), ValueError, "lr_min must be below lr_max, 0.05")


def test_an_optimizer_without_a_learning_rate_is_refused() -> None:
    model = make_model("mlp")
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    del base.param_groups[0]["lr"]
    before = snapshot(model)
    with pytest.raises(ValueError, match="the base optimizer must have an lr; this SGD has none"):
        SAM(rho=Proportional()).wrap(base, model=model)
    assert snapshot(model).keys() == before.keys()
