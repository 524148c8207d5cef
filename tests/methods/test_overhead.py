"""A target overhead is met in the seconds of a clock that the tests set."""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from sam_algos import AESAM, AELookSAM, Policy, SharpnessAware
from sam_algos.core.parts import Decision
from tests.cases import Closure, make_batches, make_model, refused, same, snapshot, wrap

pytestmark = pytest.mark.once


class Program:
    """A training program whose every action takes the seconds it is told to."""

    def __init__(self, method: Any, seed: int = 0) -> None:
        self.time, self.plain_time = 0.0, 0.0
        self.loading, self.passing, self.again, self.stepping, self.own = 0.5, 2.0, 2.0, 0.5, 0.0
        self.pause: Callable[[int], float] = lambda t: 0.0
        self.noise: Callable[[], float] = lambda: 1.0
        self.model = make_model("mlp")
        self.optimizer: Any = wrap(method, self.model)
        self.optimizer._context.passes.clock = lambda: self.time
        self.optimizer._context.passes.log = lambda metrics: self.spend(self.own)
        self.optimizer.register_step_pre_hook(lambda *_: self.spend(self.stepping))
        self.batches = make_batches(50, seed=seed)
        self.figures: list[dict[str, float]] = []

    def spend(self, seconds: float) -> None:
        self.time += seconds * self.noise()

    def run(self, count: int) -> None:
        for t in range(len(self.figures), len(self.figures) + count):
            self.spend(self.loading)
            closure = Closure(self.model, self.optimizer, self.batches[t % 50])

            def timed(closure: Closure = closure) -> Any:
                self.spend(self.again if closure.calls else self.passing)
                return closure()

            self.optimizer.step(timed)
            self.figures.append(self.optimizer.metrics)
            self.plain_time += self.loading + self.passing + self.stepping
            self.time += self.pause(t)

    @property
    def overhead(self) -> float:
        return self.time / self.plain_time - 1

    @property
    def sharp(self) -> list[float]:
        return [metrics["sam/applied"] for metrics in self.figures]


@pytest.mark.parametrize(("cls", "target"), [(AESAM, 0.05), (AESAM, 0.1), (AESAM, 0.25), (AELookSAM, 0.1)])
def test_a_budget_is_spent_and_not_more(cls: Any, target: float) -> None:
    alpha = {"alpha": 0.1} if cls is AELookSAM else {}
    program = Program(cls(target_overhead=target, **alpha))
    program.run(300)
    assert program.overhead == pytest.approx(target, abs=0.01)
    assert program.figures[-1]["sam/overhead"] == pytest.approx(program.overhead, abs=0.004)
    assert program.figures[-1]["sam/target_fraction"] == pytest.approx(target * 3.0 / 2.0)


def test_only_three_steps_are_taken_to_find_out() -> None:
    program = Program(AESAM(target_overhead=0.02))
    program.run(60)
    assert program.sharp[:7] == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    assert sum(program.sharp) == 3


def test_what_the_method_itself_takes_counts() -> None:
    program = Program(AESAM(target_overhead=0.2))
    program.own = 0.3  # a tenth of a plain step, sharp ones too
    program.run(300)
    assert program.overhead == pytest.approx(0.2, abs=0.01)
    assert sum(program.sharp) / 300 == pytest.approx(0.15, abs=0.01)


def test_pauses_evaluations_and_noise_do_not_count() -> None:
    program = Program(AESAM(target_overhead=0.2))
    rng = random.Random(0)
    program.noise = lambda: rng.lognormvariate(0, 0.05)
    program.pause = lambda t: 1000.0 if t % 7 == 4 else 0.0
    program.run(300)
    assert sum(program.sharp) / 300 == pytest.approx(0.3, abs=0.02)


def test_a_slow_beginning_is_forgotten() -> None:
    program = Program(AESAM(target_overhead=0.2))
    program.pause = lambda t: {0: 500.0, 3: 800.0}.get(t, 0.0)  # kernels are compiled for each kind of step
    program.run(200)
    assert sum(program.sharp) / 200 == pytest.approx(0.3, abs=0.015)


def test_a_machine_that_changes_its_speed_has_the_same_budget() -> None:
    program = Program(AESAM(target_overhead=0.2))
    program.run(150)
    program.noise = lambda: 0.1
    program.run(150)
    assert sum(program.sharp[150:]) / 150 == pytest.approx(0.3, abs=0.02)


def test_a_price_that_changes_is_followed() -> None:
    program = Program(AESAM(target_overhead=0.2))
    program.run(200)
    program.again = 6.0
    program.run(400)
    assert sum(program.sharp[-200:]) / 200 == pytest.approx(0.1, abs=0.03)


def test_a_budget_below_the_methods_own_share_buys_nothing() -> None:
    program = Program(AESAM(target_overhead=0.05))
    program.own = 0.6
    program.run(120)
    assert sum(program.sharp) == 3
    assert program.figures[-1]["sam/target_fraction"] == 0.0
    assert program.figures[-1]["sam/overhead"] > 0.2


@pytest.mark.parametrize("again", [0.0, 0.1])
def test_where_sharp_steps_cost_less_than_the_budget_nearly_all_are(again: float) -> None:
    program = Program(AESAM(target_overhead=0.2))
    program.again = again
    program.run(400)
    assert program.figures[-1]["sam/target_fraction"] == 0.99
    assert sum(program.sharp) / 400 == pytest.approx(0.99, abs=0.02)
    assert 0.0 in program.sharp[200:], "a plain step now and then keeps the comparison alive"


def test_what_could_not_be_spent_is_not_hoarded() -> None:
    program = Program(AESAM(target_overhead=0.2))
    program.again = 0.0
    program.run(300)
    program.again = 2.0
    program.run(300)
    assert sum(program.sharp[-150:]) / 150 == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("cut", [4, 7, 100])
def test_a_resumed_run_makes_the_decisions_of_the_uninterrupted_one(cut: int) -> None:
    """With steps that take the same in both, as the one across the cut is not measured."""
    through, first, second = (Program(AESAM(target_overhead=0.3)) for _ in range(3))
    through.run(200)
    first.run(cut)
    file = io.BytesIO()
    torch.save(first.optimizer.method_state_dict(), file)
    file.seek(0)
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.optimizer.load_method_state_dict(torch.load(file, weights_only=True))
    second.figures = first.figures[:]
    second.run(200 - cut)
    if cut < 7:  # the price of a sharp step is not known yet, and its first one is slow again
        assert sum(second.sharp) == pytest.approx(sum(through.sharp), abs=2)
        return
    assert second.sharp == through.sharp
    assert same(snapshot(second.model), snapshot(through.model))
    assert second.optimizer.method_state_dict()["policy"] == through.optimizer.method_state_dict()["policy"]


def test_a_step_that_fails_leaves_no_reading() -> None:
    program = Program(AESAM(target_overhead=0.3))
    program.run(20)
    closure = Closure(program.model, program.optimizer, program.batches[0])

    def fails() -> Any:
        closure()
        program.time += 1000.0
        raise KeyboardInterrupt("stopped")

    refused(program.optimizer, fails, KeyboardInterrupt, "stopped")
    program.run(1)  # it was not measured from the decision of the one that failed
    assert max(program.optimizer.method_state_dict()["seconds"]["plain"]) < 10


def test_a_part_that_reads_seconds_has_to_say_so() -> None:
    @dataclass(frozen=True, repr=False)
    class Unsaid(Policy):
        def decide(self, step: Any) -> Decision:
            return Decision(step.seconds.plain > 0)

    model = make_model("mlp")
    optimizer = wrap(SharpnessAware(Unsaid()), model)
    refused(optimizer, Closure(model, optimizer, make_batches(1)[0]), RuntimeError, "does not declare reads_seconds")


def test_steps_without_a_gradient_are_plain() -> None:
    program = Program(AESAM(target_overhead=0.3))
    program.batches = [(x * 0, y) for x, y in program.batches]
    for p in program.model.parameters():
        p.data.zero_()
    program.batches = [(x, y * 0) for x, y in program.batches]
    program.run(6)
    assert not any(program.sharp)
    assert all(math.isfinite(value) for value in program.figures[-1].values())
