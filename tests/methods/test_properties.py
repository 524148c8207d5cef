"""What the papers prove or state, for arbitrary parameters, gradients and options."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sam_algos import (
    SAM,
    Adaptive,
    Descent,
    GradientNorm,
    Interval,
    Parts,
    Perturbation,
    PNorm,
    Reuse,
    SharpGradient,
    Step,
    Vector,
)
from sam_algos.core.displacement import Displacement
from sam_algos.core.evaluation import Evaluation, Surroundings
from sam_algos.core.names import Name
from sam_algos.core.passes import ClosurePasses
from tests.cases import VARIANTS, Closure, make_batches, same, snapshot, wrap
from tests.references import dot, norm

# Derandomised: the examples are the same on every machine, and a failure on one is a failure on all.
checked = settings(max_examples=40, deadline=None, derandomize=True, database=None)

shapes = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=4).filter(
    lambda found: any(math.prod(shape) for shape in found)
)
seeds = st.integers(0, 10_000)
radii = st.floats(1e-3, 10)
sizes = st.floats(-12, 12).map(lambda e: 10**e)


def observed(
    params: list[Tensor],
    grads: list[Tensor],
    names: Sequence[str] | None = None,
    *,
    index: int = 0,
    total: int | None = None,
    descent: Descent = SharpGradient(),  # noqa: B008
    memory: Any = None,
) -> Step:
    """A step whose only pass leaves ``grads``."""

    def closure() -> float:
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        return 0.0

    called = [Name(name, None) for name in names or ["weight"] * len(params)]
    around = Surroundings(
        passes=ClosurePasses(nn.Module(), total),
        parts=Parts(Interval(), PNorm(), descent),
        names=lambda asked: [called[next(i for i, p in enumerate(params) if p is q)] for q in asked],  # pyright: ignore
        displacement=Displacement(),
        groups=lambda: [{"params": [p.requires_grad_() for p in params]}],
        state=dict,
        own_radii=False,
    )
    return Step(Evaluation(around, closure, index), memory or {})


def draw(shapes: list[tuple[int, ...]], seed: int, size: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    new = lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return [new(s) for s in shapes], [size * new(s) for s in shapes]


@torch.no_grad()
def epsilon(
    perturbation: Perturbation, params: list[Tensor], grads: list[Tensor], names: Sequence[str] | None = None
) -> list[Tensor]:
    ascent = perturbation.ascend(observed(params, [g.clone() for g in grads], names))
    assert ascent is not None
    assert len(ascent.direction.params) == len(params)
    return [perturbation.rho * ascent.scale * d for d in ascent.direction.values]


def remembered(params: list[Tensor], grads: list[Tensor], sharp: list[Tensor]) -> list[Tensor]:
    """LookSAM's direction after a sharp step."""
    step = observed(params, grads, descent=Reuse())
    [direction] = Reuse().sharp(step, Vector(params, sharp)).remember.values()
    return direction.values


def pnorm(values: list[Tensor], p: float) -> float:
    return float(torch.linalg.vector_norm(torch.cat([v.reshape(-1) for v in values]), p))


@checked
@given(shapes, seeds, radii, sizes, st.sampled_from([1.0, 1.1, 1.5, 2.0, 3.0, 7.0, 40.0, math.inf]))
def test_epsilon_has_the_length_rho_and_climbs_most(shapes: Any, seed: int, rho: float, size: float, p: float) -> None:
    params, grads = draw(shapes, seed, size)
    before = [g.clone() for g in grads]
    found = epsilon(PNorm(rho, p), params, grads)
    assert pnorm(found, p) == pytest.approx(rho, rel=1e-9)
    # By Hoelder no step of that length climbs more than rho times the dual norm of the gradient.
    dual = {1.0: math.inf, math.inf: 1.0}.get(p) or p / (p - 1)
    assert dot(found, grads) == pytest.approx(rho * pnorm(grads, dual), rel=1e-9)
    assert same(before, grads)


@checked
@given(shapes, seeds, radii, sizes, st.sampled_from(["element", "filter", "layer"]), st.floats(0, 1))
def test_adaptive_epsilon_has_length_rho_in_units_of_the_weights(
    shapes: Any, seed: int, rho: float, size: float, scope: Any, eta: float
) -> None:
    params, grads = draw(shapes, seed, size)
    found = epsilon(Adaptive(rho, eta, scope=scope), params, grads)
    unit = []
    for w, e in zip(params, found, strict=True):
        t = w.abs() + eta
        if scope == "layer":
            t = w.norm() + eta
        elif scope == "filter" and w.dim() > 2:
            t = w.flatten(1).norm(dim=1).view(-1, *[1] * (w.dim() - 1)) + eta
        unit.append(e / t)
    assert norm(unit) == pytest.approx(rho, rel=1e-9)
    assert dot(found, grads) > 0


@checked
@given(shapes, seeds, st.sampled_from([1.0, 2.0, 3.0, math.inf]), sizes)
def test_epsilon_does_not_depend_on_the_size_of_the_gradient(shapes: Any, seed: int, p: float, size: float) -> None:
    for perturbation in (PNorm(0.1, p), Adaptive()):
        one = epsilon(perturbation, *draw(shapes, seed))
        other = epsilon(perturbation, *draw(shapes, seed, size))
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


@checked
@given(shapes, seeds)
def test_what_is_reused_is_a_unit_vector_orthogonal_to_the_gradient(shapes: Any, seed: int) -> None:
    params, grads = draw(shapes, seed)
    _, sharp = draw(shapes, seed + 1)
    plain, g_s = [g.clone() for g in grads], [g.clone() for g in sharp]
    direction = remembered(params, grads, sharp)
    assert same(sharp, g_s)
    if sum(g.numel() for g in plain) == 1:  # everything is parallel on a line
        assert norm(direction) == 0
        return
    assert norm(direction) == pytest.approx(1)
    assert dot(direction, plain) == pytest.approx(0, abs=1e-9 * norm(plain))
    assert dot(direction, g_s) > 0


@checked
@given(shapes, seeds, st.floats(-5, 5))
def test_a_sharp_gradient_parallel_to_the_plain_one_gives_no_direction(shapes: Any, seed: int, factor: float) -> None:
    """Where rounding errors would otherwise be scaled up to the length of a gradient."""
    for dtype in (torch.float32, torch.float64):
        params, grads = ([x.to(dtype) for x in values] for values in draw(shapes, seed))
        direction = remembered(params, grads, [factor * g for g in grads])
        assert norm(direction) == 0


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


def rescaled(tau: float) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    with torch.no_grad():
        for p in model[0].parameters():
            p.mul_(tau)
        model[2].weight.div_(tau)
    return model


def loss_after_ascent(perturbation: Perturbation, tau: float) -> tuple[float, float]:
    """The loss at ``w`` and at ``w + epsilon``."""
    model, [(x, y)] = rescaled(tau), make_batches(1, torch.float64)
    before = F.mse_loss(model(x), y)
    before.backward()
    params = list(model.parameters())
    names = [name for name, _ in model.named_parameters()]
    found = epsilon(perturbation, [p.detach() for p in params], [p.grad for p in params], names)
    with torch.no_grad():
        for p, e in zip(params, found, strict=True):
            p.add_(e)
        return float(before), float(F.mse_loss(model(x), y))


@checked
@given(st.floats(0.5, 1.5), st.sampled_from([0.1, 0.5, 1.0]))
def test_the_adaptive_ball_does_not_see_a_rescaling_that_changes_nothing(tau: float, rho: float) -> None:
    """Two consecutive ReLU layers by (tau, 1/tau): the network computes what it did."""
    ball = Adaptive(rho, eta=0.0, normalize_bias=True)
    clean, sharp = loss_after_ascent(ball, 1.0)
    assert loss_after_ascent(ball, tau) == pytest.approx((clean, sharp), rel=1e-9)
    assert sharp > clean


def test_the_euclidean_ball_and_plain_biases_do_see_it() -> None:
    for ball in (PNorm(0.5), Adaptive(0.5, eta=0.0), Adaptive(0.5, eta=0.5, normalize_bias=True)):
        (clean, sharp), (same_clean, other) = (loss_after_ascent(ball, tau) for tau in (1.0, 0.5))
        assert same_clean == pytest.approx(clean, rel=1e-9)
        assert abs(other - sharp) > 1e-3 * (sharp - clean)


@checked
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), radii, st.sampled_from(sorted(VARIANTS)), seeds)
def test_any_network_is_displaced_by_rho_and_put_back(widths: list[int], rho: float, name: str, seed: int) -> None:
    torch.manual_seed(seed)
    layers = [nn.Linear(a, b) for a, b in zip([6, *widths], [*widths, 3], strict=True)]
    model = nn.Sequential(*layers).double()
    optimizer = wrap(VARIANTS[name], model, rho=rho)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda m, _: seen.append(nn.utils.parameters_to_vector(m.parameters()).detach()))
    start = snapshot(model)["model"]
    before: list[Any] = []
    optimizer.base_optimizer.register_step_pre_hook(lambda *_: before.append(snapshot(model)["model"]))
    optimizer.step(Closure(model, optimizer, make_batches(1, torch.float64, seed)[0]))
    assert same(before, [start])
    if isinstance(VARIANTS[name], SAM) and len(seen) == 2:
        assert pnorm([seen[1] - seen[0]], VARIANTS[name].p) == pytest.approx(rho, rel=1e-6)
