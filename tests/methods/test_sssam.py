"""SS-SAM's schedules: the probability of every step, the share of sharp ones, and what is refused."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sam_algos import SSSAM, Bernoulli, Policy, ScheduledBernoulli
from sam_algos.core.objective.view import Step
from sam_algos.core.parts import Decision

T = 4000
PROBABILITIES = {
    "piecewise": lambda x: 0.1 if x < 0.5 else 0.7,
    "linear": lambda x: 0.1 + 0.6 * x,
    "trigonometric": lambda x: 0.4 - 0.3 * math.cos(math.pi * x),
}


def decisions(policy: Policy) -> list[Decision]:
    """What a policy decides on the steps of a whole training, without any."""
    found = []
    for t in range(T):
        view = SimpleNamespace(index=t, progress=t / T)
        view.random = lambda seed, view=view: Step.random(cast(Any, view), seed)
        found.append(policy.decide(cast(Any, view)))
    return found


@pytest.mark.parametrize("name", PROBABILITIES)
def test_the_probability_of_a_step_is_the_schedules(name: Any) -> None:
    found = [d.log["probability"] for d in decisions(ScheduledBernoulli(name, 0.1, 0.7))]
    assert found == pytest.approx([PROBABILITIES[name](t / T) for t in range(T)])


@pytest.mark.parametrize("name", PROBABILITIES)
@pytest.mark.parametrize("seed", range(3))
def test_the_share_of_sharp_steps_is_the_expected_one(name: Any, seed: int) -> None:
    """In each quarter of training, within four standard deviations of a sum of independent draws."""
    sharp = [d.sharp for d in decisions(ScheduledBernoulli(name, 0.1, 0.7, seed))]
    for quarter in range(4):
        steps = range(quarter * T // 4, (quarter + 1) * T // 4)
        p = [PROBABILITIES[name](t / T) for t in steps]
        deviation = math.sqrt(sum(x * (1 - x) for x in p))
        assert abs(sum(sharp[t] for t in steps) - sum(p)) < 4 * deviation
    assert sum(sharp) / T == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize("name", PROBABILITIES)
def test_a_probability_that_stands_still_draws_as_the_constant_one(name: Any) -> None:
    still, constant = decisions(ScheduledBernoulli(name, 0.3, 0.3, 5)), decisions(Bernoulli(0.3, 5))
    assert [d.sharp for d in still] == [d.sharp for d in constant]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a schedule": (
        {"schedule": "cosine"},
        "SSSAM(schedule='cosine'): schedule must be one of 'constant', 'piecewise', 'linear', 'trigonometric'.",
    ),
    "a start": (
        {"schedule": "linear", "start": 1.1},
        "SSSAM(start=1.1): start must be a number in [0, 1].",
    ),
    "an end that nobody reads": (
        {"end": 0.5},
        "SSSAM(end=0.5): end must be left at its default, 1.0, with schedule='constant'.",
    ),
    "a probability that nobody reads": (
        {"schedule": "linear", "probability": 0.2},
        "SSSAM(probability=0.2): probability must be left at its default, 0.5, with schedule='linear'.",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_makes_no_sense_is_refused(name: str) -> None:
    options, message = WRONG[name]
    with pytest.raises(ValueError) as error:
        SSSAM(**options)
    assert str(error.value) == message
