"""A method that never acts says so, unless it was told never to act."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.amp.grad_scaler import GradScaler

from sam_algos import (
    AESAM,
    ESAM,
    METHODS,
    SAM,
    SAMON,
    SSSAM,
    Adaptive,
    AELookSAM,
    Fisher,
    FisherSAM,
    FriendlySAM,
    LateSAM,
    Linear,
    LookSAM,
    Method,
    MomentumSAM,
    Perturbation,
    PNorm,
    SharpnessAware,
    VaSSO,
)
from sam_algos.core.objective.view import Step
from sam_algos.core.parts import Ascent
from tests.cases import Closure, make_batches, make_model, model_of, reads_losses, steps, wrap


class Nowhere(Perturbation):
    """Has no direction on any step, or on all but every tenth."""

    tenth = False

    def ascend(self, step: Step) -> Ascent | None:
        g = step.gradient
        return Ascent(g, 1 / g.norm()) if self.tenth and step.index % 10 == 0 else None


class Seldom(Nowhere):
    tenth = True


def trained(method: Method, count: int, *, total_steps: int = 100) -> Any:
    model = make_model("mlp")
    optimizer: Any = wrap(method, model, total_steps=total_steps)
    list(steps(model, optimizer, make_batches(count)))
    return optimizer


def test_steps_without_a_direction_warn_once() -> None:
    with pytest.warns(UserWarning, match=r"50 steps in a row .*Nowhere\(rho=0.05\) had no direction") as found:
        trained(SharpnessAware(perturbation=Nowhere()), 120)
    assert len(found) == 1


def test_a_direction_now_and_then_is_enough() -> None:
    optimizer = trained(SharpnessAware(perturbation=Seldom()), 120)
    assert optimizer.metrics["sam/fraction"] == pytest.approx(0.1)
    optimizer.warn_if_idle()


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (LateSAM(start=0.9), r"Late\(start=0.9\) asked for none, the last at 19% of training"),
        (AESAM(lambda_1=1e9, lambda_2=1e9), r"GradientNorm\(.*\) asked for none"),
        (SharpnessAware(perturbation=Nowhere()), r"Nowhere\(rho=0.05\) had no direction to climb in"),
    ],
    ids=["late", "a threshold too high", "no direction"],
)
def test_training_that_ends_without_a_sharp_step_says_why_once(method: Method, why: str) -> None:
    optimizer = trained(method, 20)
    with pytest.warns(UserWarning, match=f"None of 20 steps was sharpness-aware.*: {why}") as found:
        optimizer.warn_if_idle()
        optimizer.warn_if_idle()
    assert len(found) == 1


NEVER: dict[str, Method] = {
    "start": LateSAM(start=1),
    "probability": SSSAM(probability=0.0),
    "schedule": SSSAM(schedule="linear", start=0.0, end=0.0),
    "fraction": AESAM(target_fraction=0.0),
    "radius schedule": SAM(rho=Linear(0.0, 0.0)),
    "no direction, and no radius": SharpnessAware(perturbation=Nowhere(rho=0.0)),
    **{f"rho=0, {cls.__name__}": cls(rho=0.0) for cls in (SAM, ESAM, MomentumSAM, SAMON)},
}


@pytest.mark.parametrize("method", NEVER.values(), ids=NEVER)
def test_a_method_that_is_told_never_to_act_does_not_warn(method: Method) -> None:
    optimizer = trained(method, 60, total_steps=60)
    assert optimizer.metrics["sam/fraction"] == 0.0
    optimizer.warn_if_idle()


@pytest.mark.parametrize("base", ["sgd", "momentum"])
def test_without_a_radius_momentum_sam_needs_no_momentum(base: str) -> None:
    model = make_model("mlp")
    momentum = {"sgd": 0.0, "momentum": 0.9}[base]
    optimizer = MomentumSAM(rho=0).wrap(torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum), model=model)
    list(steps(model, optimizer, make_batches(2)))


def test_without_a_radius_sam_on_needs_no_normalisation_layer() -> None:
    model = torch.nn.Linear(6, 3)
    optimizer = METHODS["samon"](rho=0.0).wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)  # pyright: ignore
    list(steps(model, optimizer, make_batches(2)))


def test_the_first_step_needs_no_direction() -> None:
    """There is no momentum yet."""
    trained(MomentumSAM(), 1).warn_if_idle()


def test_acting_before_a_resume_counts() -> None:
    first = trained(SAM(interval=100), 3)
    model = make_model("mlp")
    second: Any = wrap(SAM(interval=100), model)
    second.load_method_state_dict(first.method_state_dict())
    list(steps(model, second, make_batches(3)))
    second.warn_if_idle()


def test_a_run_without_a_step_does_not_warn() -> None:
    trained(LateSAM(), 0).warn_if_idle()


SCHEDULED = [LateSAM(start=0.5), SAM(rho=Linear()), AESAM(), SSSAM(schedule="linear")]


@pytest.mark.parametrize("method", SCHEDULED, ids=str)
def test_steps_beyond_the_end_of_a_schedule_warn_once(method: Method) -> None:
    with pytest.warns(UserWarning, match="Step 5 is beyond total_steps=4") as found:
        trained(method, 9, total_steps=4)
    assert len(found) == 1


def test_a_run_that_ends_at_total_steps_does_not_warn() -> None:
    for method in SCHEDULED:
        trained(method, 4, total_steps=4)


def test_steps_beyond_total_steps_do_not_warn_without_a_schedule() -> None:
    trained(SAM(), 9, total_steps=4)


def scaled(method: Method, *, tell: bool, enabled: bool = True, count: int = 3, wrapped: bool = True) -> Any:
    """Train with a ``GradScaler``, which `backward` is told of or not."""
    scaler, model = GradScaler("cpu", init_scale=2.0**10, enabled=enabled), make_model("mlp")
    optimizer: Any = wrap(method, model, total_steps=100)
    for batch in make_batches(count):
        closure = Closure(model, optimizer, batch)

        def scaling(*samples: Any, closure: Closure = closure) -> Any:
            loss = closure.losses(*samples)
            if reads_losses(optimizer):
                return loss
            optimizer.zero_grad()
            scaler.scale(loss.mean()).backward()
            return loss.mean().detach()

        optimizer.backward(scaling, **({"scaler": scaler} if tell else {}))
        taken = optimizer if wrapped else optimizer.base_optimizer
        scaler.unscale_(taken)
        scaler.step(taken)
        scaler.update()
    return optimizer


DEPENDS = {
    "aesam": AESAM(),
    "aelooksam": AELookSAM(),
    "target fraction": AESAM(target_fraction=0.5),
    "target overhead": AESAM(target_overhead=0.5),
    "fisher": FisherSAM(),
    "friendly": FriendlySAM(),
    "vasso": VaSSO(),
    "epsilon": SAM(epsilon=1e-3),
}


@pytest.mark.parametrize("wrapped", [True, False], ids=["its step", "the base optimizer's"])
@pytest.mark.parametrize("method", DEPENDS.values(), ids=DEPENDS)
def test_a_scaler_that_was_not_mentioned_warns_once(method: Method, wrapped: bool) -> None:
    with pytest.warns(UserWarning, match=r"takes the scale .*optimizer.backward\(closure, scaler=scaler\)") as found:
        scaled(method, tell=False, wrapped=wrapped)
    assert len(found) == 1


@pytest.mark.parametrize("method", DEPENDS.values(), ids=DEPENDS)
def test_a_scaler_that_was_mentioned_or_is_off_does_not_warn(method: Method) -> None:
    scaled(method, tell=True)
    scaled(method, tell=False, enabled=False)


INVARIANT = {
    name: cls()
    for name, cls in METHODS.items()
    if name not in ("aesam", "aelooksam", "fishersam", "friendlysam", "vasso", "esam")
}


@pytest.mark.parametrize("method", INVARIANT.values(), ids=INVARIANT)
def test_methods_that_do_not_need_the_scale_train_the_same_without_it(method: Method) -> None:
    """The scale is taken off before the base optimizer steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ends = [model_of(scaled(method, tell=tell, count=6)).state_dict().values() for tell in (True, False)]
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("part", [Fisher(eta=0.0), PNorm(), Adaptive()], ids=repr)
def test_the_scale_matters_where_an_option_makes_it(part: Perturbation) -> None:
    assert not part.reads_scale
    assert LookSAM().composition().reader("reads_scale") is None
    assert PNorm(epsilon=1e-3).reads_scale
    assert Fisher().reads_scale
