"""A target fraction is met on whatever gradients, by the largest of them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam_algos import AESAM, SAM, AELookSAM, Method, TargetFraction
from tests.cases import Closure, make_batches, make_model, same, snapshot, steps, wrap
from tests.methods.observed import checked

pytestmark = pytest.mark.once
SLACK = 1e-9  # of sums of fractions


class Run:
    """A policy's decisions on gradient norms, with the counts that the loop keeps."""

    def __init__(self, policy: TargetFraction) -> None:
        self.policy, self.memory = policy, policy.initial()
        self.sharp: list[bool] = []

    def decide(self, norm: float) -> bool:
        counts = {"index": len(self.sharp), "sharp": sum(self.sharp)}
        decision = self.policy.decide(SimpleNamespace(gradient_norm=norm, memory=self.memory, **counts))  # pyright: ignore
        self.memory = {**self.memory, **decision.remember}
        self.sharp.append(decision.sharp)
        return decision.sharp

    def is_due(self) -> float:
        """Sharp steps less than due."""
        return self.policy.fraction * len(self.sharp) - sum(self.sharp)

    def errors(self) -> list[float]:
        """By how much the fraction was off after each step."""
        counts = enumerate(itertools.accumulate(self.sharp), 1)
        return [abs(count / t - self.policy.fraction) for t, count in counts]


def decided(policy: TargetFraction, norms: Iterable[float]) -> Run:
    run = Run(policy)
    for norm in norms:
        run.decide(norm)
    return run


def is_met(run: Run) -> bool:
    return all(error <= max(1 / t, 0.01) + SLACK for t, error in enumerate(run.errors(), 1))


targets = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1e-12, 0.005, 0.2, 1 / 3, 0.5, 0.995, 1.0]))
logarithms = st.floats(-600, 300)


@checked
@given(targets, st.lists(logarithms, min_size=1, max_size=150), st.integers(1, 8), st.sampled_from([0.0, 0.9, 0.999]))
def test_no_stream_of_gradients_leaves_the_band(target: float, logs: list[float], times: int, delta: float) -> None:
    assert is_met(decided(TargetFraction(target, delta), map(math.exp, logs * times)))


STREAMS: dict[str, Callable[[random.Random, int], float]] = {
    "log-normal": lambda rng, t: rng.lognormvariate(0, 0.5),
    "wide": lambda rng, t: rng.lognormvariate(0, 3),
    "normal": lambda rng, t: max(0.01, rng.gauss(5, 1)),
    "heavy-tailed": lambda rng, t: abs(rng.gauss(0, 1) / rng.gauss(0, 1)),
    "falling": lambda rng, t: rng.lognormvariate(-0.002 * t, 0.5),
    "growing exponentially": lambda rng, t: math.exp(0.2 * t),
    "constant": lambda rng, t: 0.1,
    "periodic": lambda rng, t: 2 + math.sin(t / 7),
    "at the learning rate's drops": lambda rng, t: rng.lognormvariate(0, 0.3) * 0.1 ** (t // 700),
    "two levels": lambda rng, t: rng.choice([1.0, 10.0]),
    "seldom large": lambda rng, t: 100.0 if rng.random() < 0.02 else 1.0,
}


def stream(name: str, length: int, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [STREAMS[name](rng, t) for t in range(length)]


TARGETS = [(name, 0.2) for name in STREAMS]
TARGETS += [(name, t) for name in ("log-normal", "falling", "two levels") for t in (0.01, 0.1, 0.333, 0.5, 0.9)]


@pytest.mark.parametrize(("name", "target"), TARGETS)
def test_a_target_is_met_from_the_first_hundred_steps_on(name: str, target: float) -> None:
    run = decided(TargetFraction(target), stream(name, 2000))
    assert is_met(run)
    assert max(run.errors()[99:]) <= 0.01 + SLACK


ADVERSARIES: dict[str, Callable[[Run], float]] = {
    "always above": lambda run: 10.0 + run.memory["mean"],
    "always below": lambda run: run.memory["mean"] - 10.0,
    "large when none is due": lambda run: run.memory["mean"] + math.copysign(10.0, -run.is_due()),
    "at the mean": lambda run: run.memory["mean"],
    "just below the mean": lambda run: run.memory["mean"] - 1e-9,
}


@pytest.mark.parametrize(
    ("name", "target"),
    [*((name, 0.333) for name in ADVERSARIES), *(("large when none is due", target) for target in (0.1, 0.7))],
)
def test_an_adversary_that_knows_the_threshold_does_not_leave_the_band(name: str, target: float) -> None:
    run = Run(TargetFraction(target))
    for _ in range(1000):
        run.decide(math.exp(max(-600.0, min(600.0, ADVERSARIES[name](run))) / 2))
    assert is_met(run)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        *((name, 0.2) for name in ("log-normal", "wide", "normal", "heavy-tailed", "falling")),
        *(("heavy-tailed", target) for target in (0.1, 0.5)),
    ],
)
def test_the_sharp_steps_are_those_with_the_largest_gradients(name: str, target: float) -> None:
    """What they are above the average in ``log ‖g‖``, beside what the largest of all would be."""
    norms = stream(name, 4000)
    sharp = decided(TargetFraction(target), norms).sharp
    trend = [-0.002 * t if name == "falling" else 0.0 for t in range(len(norms))]
    for begin, end, least in ((100, 1000, 0.75), (1000, 4000, 0.87)):
        window = range(begin, end)
        logs = {t: math.log(norms[t]) - trend[t] for t in window}
        mean = sum(logs.values()) / len(logs)
        chosen = [logs[t] - mean for t in window if sharp[t]]
        largest = sorted((value - mean for value in logs.values()), reverse=True)[: len(chosen)]
        assert sum(chosen) >= least * sum(largest)


def test_decisions_do_not_depend_on_the_scale_of_the_loss() -> None:
    norms = stream("log-normal", 500)
    assert len({tuple(decided(TargetFraction(0.3), [x * s for x in norms]).sharp) for s in (1.0, 1e-6, 1e6)}) == 1


def test_steps_without_a_usable_gradient_are_plain_and_count() -> None:
    norms = stream("log-normal", 3000)
    norms[::9] = [(math.nan, math.inf, 0.0)[i % 3] for i in range(len(norms[::9]))]
    run = decided(TargetFraction(0.3), norms)
    assert not any(run.sharp[::9])
    assert max(run.errors()[99:]) <= 0.01 + SLACK


def test_another_target_holds_for_the_steps_that_follow() -> None:
    norms = stream("log-normal", 2000)
    run = decided(TargetFraction(0.1), norms[:1000])
    run.policy = TargetFraction(0.6)
    for norm in norms[1000:]:
        run.decide(norm)
    for since in range(1050, 2000):  # nothing is made up for
        assert sum(run.sharp[1000:since]) == pytest.approx(0.6 * (since - 1000), abs=0.02 * since)


def test_a_checkpoint_of_another_method_is_where_the_count_begins() -> None:
    model = make_model("mlp")
    before, after = wrap(SAM(), model), wrap(AESAM(target_fraction=0.2), model)
    list(steps(model, before, make_batches(150)))
    after.load_method_state_dict(before.method_state_dict())
    list(steps(model, after, make_batches(200)))
    assert after.method_state_dict()["sharp"] - 150 == pytest.approx(40, abs=2)


METHODS = {"aesam": AESAM(target_fraction=0.2), "aelooksam": AELookSAM(target_fraction=0.333)}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_the_optimizer_meets_the_target_without_knowing_its_steps(method: Any) -> None:
    model = make_model("mlp")
    base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer = method.wrap(base, model=model)
    for t, _ in enumerate(steps(model, optimizer, make_batches(260)), 1):
        base.param_groups[0]["lr"] = 0.05 * 0.1 ** (t // 90)
        error = abs(optimizer.metrics["sam/fraction"] - method.target_fraction)
        assert error <= max(1 / t, 0.01) + SLACK
        above = optimizer.metrics["sam/statistic"] >= optimizer.metrics["sam/threshold"]
        assert above == bool(optimizer.metrics["sam/applied"])


@pytest.mark.parametrize("nonfinite", ["pass", "skip"])
def test_steps_that_are_not_finite_keep_the_count_right(nonfinite: Any) -> None:
    model = make_model("mlp")
    optimizer: Any = wrap(AESAM(target_fraction=0.3, nonfinite=nonfinite), model, base="sgd")

    def mend(*_: Any) -> None:
        for p in model.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad.nan_to_num(0.0)

    optimizer.register_step_pre_hook(mend)
    for t, (x, y) in enumerate(make_batches(200)):
        optimizer.step(Closure(model, optimizer, (x, y * math.nan if t % 10 == 5 else y)))
    memory = optimizer.method_state_dict()
    assert memory["nonfinite"] == 20
    assert memory["step"] == (200 if nonfinite == "pass" else 180)
    assert optimizer.metrics["sam/fraction"] == pytest.approx(0.3, abs=0.01)


def test_a_resumed_run_makes_the_decisions_of_the_uninterrupted_one() -> None:
    batches = make_batches(150)
    for cut in (1, 37, 101):
        whole, resumed = make_model("mlp"), make_model("mlp")
        through, first, second = (wrap(METHODS["aesam"], model) for model in (whole, resumed, resumed))
        list(steps(whole, through, batches))
        list(steps(resumed, first, batches[:cut]))
        second.load_state_dict(first.state_dict())
        second.load_method_state_dict(first.method_state_dict())
        list(steps(resumed, second, batches[cut:]))
        assert same(snapshot(resumed, second), snapshot(whole, through))


TWO_COSTS: dict[str, tuple[type[Method], dict[str, Any], str]] = {
    "lambda_1": (AESAM, {"target_fraction": 0.2, "lambda_1": 0.0}, "lambda_1 must be -1.0 with target_fraction"),
    "lambda_2": (AELookSAM, {"target_overhead": 0.2, "lambda_2": 1.0}, "lambda_2 must be 2.0 with target_overhead"),
    "both": (AESAM, {"target_fraction": 0.2, "target_overhead": 0.1}, "must be None with target_fraction"),
}


@pytest.mark.parametrize("case", TWO_COSTS)
def test_two_that_set_the_cost_are_refused(case: str) -> None:
    cls, options, message = TWO_COSTS[case]
    with pytest.raises(ValueError, match=rf"^{cls.__name__}\(.*\): .*{message}"):
        cls(**options)
