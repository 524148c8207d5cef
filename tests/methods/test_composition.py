"""A part in place of a method's own: what it replaces, what is refused, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import sam_algos
from sam_algos import (
    AESAM,
    ESAM,
    METHODS,
    SAM,
    Adaptive,
    Friendly,
    FriendlySAM,
    GradientNorm,
    Interval,
    LookSAM,
    Method,
    Momentum,
    Parts,
    PNorm,
    Reuse,
)

GIVEN: dict[str, Any] = {"policy": Interval(7), "perturbation": PNorm(0.3), "descent": Reuse(0.9)}


# What is kept of a direction has to fit every method; methods that check their options have more to say.
REPLACED = [(name, "descent") for name in METHODS]
REPLACED += [(n, axis) for n in ("sam", "gsam", "aesam", "aelooksam", "esam") for axis in ("policy", "perturbation")]


@pytest.mark.parametrize(("name", "axis"), REPLACED)
def test_one_axis_is_replaced_and_the_others_stay(name: str, axis: str) -> None:
    part = GIVEN[axis]
    method = METHODS[name](**{axis: part})
    assert method.composition() == METHODS[name]().parts()._replace(**{axis: part})
    assert f"{axis}={part!r}" in repr(method)
    assert axis not in repr(METHODS[name]())
    assert eval(repr(method), {n: getattr(sam_algos, n) for n in sam_algos.__all__}) == method


def test_an_option_of_a_part_that_stays_is_free() -> None:
    method = AESAM(delta=0.5, perturbation=Adaptive())
    assert method.composition() == Parts(GradientNorm(0.5), Adaptive(), AESAM().parts().descent)
    assert LookSAM(alpha=0.2, rho=0.3, policy=Interval(2)).composition().descent == Reuse(0.2)


WITHOUT_EFFECT: dict[str, tuple[Callable[[], Method], str]] = {
    "radius": (
        lambda: AESAM(rho=0.1, perturbation=Adaptive()),
        f"AESAM(rho=0.1): rho must be left at its default, 0.05, with perturbation="
        f"{Adaptive()!r}, which takes its place.",
    ),
    "an option of the perturbation": (
        lambda: FriendlySAM(sigma=0.5, perturbation=PNorm()),
        "FriendlySAM(sigma=0.5): sigma must be left at its default, 1.0, with perturbation=",
    ),
    "the interval": (
        lambda: SAM(interval=2, policy=GradientNorm()),
        "SAM(interval=2): interval must be left at its default, 1, with policy=",
    ),
    "the reused direction": (
        lambda: LookSAM(alpha=0.1, descent=Reuse(0.2)),
        "LookSAM(alpha=0.1): alpha must be left at its default, 0.3, with descent=Reuse(alpha=0.2, max_age=None)",
    ),
    "one that chooses a part": (
        lambda: SAM(steps=2, perturbation=Adaptive()),
        "SAM(steps=2): steps must be left at its default, 1, with perturbation=",
    ),
    "two": (
        lambda: AESAM(lambda_1=0.0, policy=Interval(2), perturbation=Adaptive()),
        "AESAM(lambda_1=0.0): lambda_1 must be left at its default, -1.0, with policy=Interval(k=2), which",
    ),
}


@pytest.mark.parametrize("name", WITHOUT_EFFECT)
def test_an_option_without_effect_is_refused(name: str) -> None:
    make, message = WITHOUT_EFFECT[name]
    with pytest.raises(ValueError) as error:
        make()
    assert str(error.value).startswith(message)


def test_options_that_were_given_are_checked_with_every_change() -> None:
    with pytest.raises(ValueError, match="rho must be left at its default"):
        replace(SAM(rho=0.1), perturbation=Adaptive())
    assert replace(SAM(), perturbation=Adaptive()) == SAM(perturbation=Adaptive())


@pytest.mark.parametrize("axis", GIVEN)
def test_a_part_of_another_axis_is_refused(axis: str) -> None:
    kind = axis.capitalize()
    for value in (3, "sam", *(part for other, part in GIVEN.items() if other != axis)):
        with pytest.raises(ValueError) as error:
            SAM(**{axis: value})
        assert str(error.value) == f"SAM({axis}={value!r}): {axis} must be a {kind}, or None."


def test_parts_that_exclude_one_another_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ESAM: MostSensitive.* cannot be combined with Momentum, which has no pass"):
        ESAM(perturbation=Momentum())
    with pytest.raises(ValueError, match=r"ascent_fraction must be 1 with GradientNorm"):
        SAM(policy=GradientNorm(), ascent_fraction=0.5)
    with pytest.raises(ValueError, match=r"ascent_fraction must be 1 with Friendly"):
        SAM(perturbation=Friendly(), ascent_fraction=0.5)
