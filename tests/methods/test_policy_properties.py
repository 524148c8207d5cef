"""What AE-SAM's paper proves or implies about its decisions, for arbitrary gradients and options."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from sam_algos import (
    GradientNorm,
)
from tests.methods.observed import checked, observed


def decisions(policy: GradientNorm, xs: list[float], scale: float = 1.0) -> list[bool]:
    memory, sharp = policy.initial(), []
    for t, x in enumerate(xs):
        grads = [torch.tensor([scale * math.sqrt(x)], dtype=torch.float64)]
        step = observed([torch.zeros(1).double()], grads, index=t, total=len(xs), memory=memory)
        decision = policy.decide(step)
        memory, sharp = decision.remember, [*sharp, decision.sharp]
    return sharp


norms = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=40)


@checked
@given(norms, st.sampled_from([0.5, 0.9, 0.99]))
def test_no_gradient_is_further_out_than_the_bound(xs: list[float], delta: float) -> None:
    policy = GradientNorm(delta, variance=0.0)
    memory = policy.initial()
    for x in xs:
        grads = [torch.tensor([math.sqrt(x)], dtype=torch.float64)]
        memory = policy.decide(observed([torch.zeros(1).double()], grads, memory=memory)).remember
        bound = math.sqrt(memory["variance"] / (1 - delta))
        assert abs(x - memory["mean"]) <= bound * (1 + 1e-9)


@checked
@given(norms)
def test_a_factor_beyond_the_bound_decides_alone(xs: list[float]) -> None:
    """``1 / sqrt(1 - 0.9) = 3.162``. A first step at the initial mean of zero lies within it too."""
    always, never = ({"lambda_1": c, "lambda_2": c} for c in (-3.163, 3.163))
    assert all(decisions(GradientNorm(**always), xs))
    assert not any(decisions(GradientNorm(**never), xs))


def test_factors_just_within_the_bound_do_not_decide_alone() -> None:
    leap = [1.0] * 200 + [1e6]
    inside = {"lambda_1": 3.16, "lambda_2": 3.16}
    assert decisions(GradientNorm(**inside), leap)[-1]
    drop = [1e6] * 200 + [1e-3]
    assert not decisions(GradientNorm(lambda_1=-3.0, lambda_2=-3.0), drop)[-1]


@checked
@given(norms, st.integers(-20, 20), st.floats(-3, 3), st.floats(-3, 3))
def test_decisions_do_not_depend_on_the_scale_of_the_loss(
    xs: list[float], power: int, first: float, last: float
) -> None:
    """For a power of two to the last bit, once the initial variance, which is absolute, has faded."""
    policy = GradientNorm(lambda_1=first, lambda_2=last, variance=0.0)
    assert decisions(policy, xs) == decisions(policy, xs, scale=2.0**power)
