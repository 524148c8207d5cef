"""``sharpness_aware:`` in a recipe: a method composed of named parts, as strict as the rest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sam_algos import (
    AESAM,
    PARTS,
    Adaptive,
    AscentFraction,
    Cosine,
    GradientNorm,
    Interval,
    LookSAM,
    PNorm,
    ProjectedAscent,
    Proportional,
    Reuse,
    SharpnessAware,
)
from sam_algos.recipes import RecipeError, load_recipe
from sam_algos.recipes.naming.components import build_algorithms

BASE = """
model: {name: small_cnn}
train_dataset: {name: digits}
optimizer: {name: sgd, lr: 0.1}
max_duration: 1ep
global_train_batch_size: 64
algorithms:
  sharpness_aware:
    policy: {name: gradient_norm, lambda_2: 2.0}
    perturbation: {name: adaptive, rho: 0.5}
    descent: {name: reuse, alpha: 0.1}
    nonfinite: skip
"""


def composed(tmp_path: Path, *overrides: str) -> Any:
    path = tmp_path / "recipe.yaml"
    path.write_text(BASE)
    return build_algorithms(load_recipe(path, overrides).algorithms)[0]


def test_parts_are_written_like_any_section(tmp_path: Path) -> None:
    expected = SharpnessAware(GradientNorm(lambda_2=2.0), Adaptive(0.5), Reuse(0.1), nonfinite="skip")
    assert composed(tmp_path) == expected


def test_what_is_left_out_is_sams() -> None:
    assert build_algorithms({"sharpness_aware": {}}) == [SharpnessAware()]


def test_a_part_with_another_name_replaces_the_one_below(tmp_path: Path) -> None:
    found = composed(tmp_path, "algorithms.sharpness_aware.policy={name: interval, k: 3}")
    assert found.policy == Interval(3)
    assert found.perturbation == Adaptive(0.5)
    assert composed(tmp_path, "algorithms.sharpness_aware.policy.lambda_2=3.0").policy == GradientNorm(lambda_2=3.0)


@pytest.mark.parametrize(("axis", "name"), [(axis, name) for axis, parts in PARTS.items() for name in parts])
def test_every_part_has_a_name(axis: str, name: str) -> None:
    option = "rho" if axis == "schedule" else axis
    (method,) = build_algorithms({"sam" if axis == "schedule" else "sharpness_aware": {option: {"name": name}}})
    assert getattr(method, option) == PARTS[axis][name]()


def test_every_method_takes_parts() -> None:
    arguments = {"perturbation": {"name": "adaptive", "eta": 0.1}, "descent": {"name": "reuse"}, "delta": 0.8}
    found = build_algorithms({"aesam": arguments})
    assert found == [AESAM(delta=0.8, perturbation=Adaptive(eta=0.1), descent=Reuse())]


def test_a_part_that_takes_an_options_place_is_one_line() -> None:
    expected = "algorithms.aesam: AESAM(rho=0.1): rho must be left at its default, 0.05, with perturbation="
    with pytest.raises(RecipeError, match=re.escape(expected)):
        build_algorithms({"aesam": {"rho": 0.1, "perturbation": {"name": "adaptive"}}})


def test_a_radius_may_have_a_schedule_in_a_method_and_in_a_part() -> None:
    schedule = {"name": "proportional", "rho": 0.1, "rho_min": 0.01}
    assert build_algorithms({"looksam": {"rho": schedule, "k": 3}}) == [LookSAM(Proportional(0.1, 0.01), k=3)]
    found = build_algorithms({"sharpness_aware": {"perturbation": {"name": "adaptive", "rho": {"name": "cosine"}}}})
    assert found == [SharpnessAware(perturbation=Adaptive(Cosine()))]


WRONG_SCHEDULES: dict[str, tuple[Any, str]] = {
    "a name": ({"name": "cosin"}, "algorithms.sam.rho.name: unknown schedule 'cosin'; did you mean 'cosine'?"),
    "no name": ({"start": 0.1}, "algorithms.sam.rho.name: required"),
    "an argument": (
        {"name": "linear", "ende": 0.1},
        "algorithms.sam.rho: unknown argument 'ende'; did you mean 'end'?",
    ),
    "a value": (
        {"name": "linear", "end": -1.0},
        "algorithms.sam.rho.end: must be a finite number >= 0, got -1.0",
    ),
    "neither": ("cosine", "algorithms.sam.rho: must be a finite number >= 0, or a schedule {name: ...}, got 'cosine'"),
    "another part": ({"name": "interval"}, "algorithms.sam.rho.name: unknown schedule 'interval'"),
}


@pytest.mark.parametrize("case", WRONG_SCHEDULES)
def test_a_wrong_schedule_is_one_line(case: str) -> None:
    rho, expected = WRONG_SCHEDULES[case]
    with pytest.raises(RecipeError, match=re.escape(expected)) as error:
        build_algorithms({"sam": {"rho": rho}})
    assert "\n" not in str(error.value)


def test_names_in_any_spelling() -> None:
    (method,) = build_algorithms(
        {
            "sharpness_aware": {
                "perturbation": {"name": "ProjectedAscent", "steps": 3},
                "samples": {"name": "ascent_fraction"},
            }
        }
    )
    assert method == SharpnessAware(perturbation=ProjectedAscent(steps=3), samples=AscentFraction())
    assert build_algorithms({"sharpness_aware": {"perturbation": {"name": "p_norm"}}})[0].perturbation == PNorm()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a name": ({"policy": {"name": "intervall"}}, "policy.name: unknown policy 'intervall'; did you mean 'interval'?"),
    "an axis": ({"polcy": {"name": "interval"}}, "unknown argument 'polcy'; did you mean 'policy'?"),
    "an argument": ({"policy": {"name": "interval", "kk": 2}}, "policy: unknown argument 'kk'; did you mean 'k'?"),
    "a value": ({"policy": {"name": "interval", "k": 0}}, "policy.k: must be an integer >= 1, got 0"),
    "a type": ({"policy": {"name": "interval", "k": "two"}}, "policy.k: must be an integer >= 1, got 'two'"),
    "no name": ({"policy": {"k": 2}}, "policy.name: required"),
    "no mapping": ({"policy": "interval"}, "policy: must be a policy {name: ...}, got 'interval'"),
    "a part of another axis": ({"policy": {"name": "reuse"}}, "policy.name: unknown policy 'reuse'"),
    "parts that exclude one another": (
        {"policy": {"name": "gradient_norm"}, "samples": {"name": "ascent_fraction"}},
        "cannot be combined with GradientNorm, which needs the plain gradient of the whole batch",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line(case: str) -> None:
    arguments, expected = WRONG[case]
    with pytest.raises(RecipeError, match=re.escape(expected)) as error:
        build_algorithms({"sharpness_aware": arguments})
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("algorithms.sharpness_aware")


def test_a_second_method_is_refused() -> None:
    with pytest.raises(RecipeError, match="sam and sharpness_aware cannot be combined"):
        build_algorithms({"sam": {}, "sharpness_aware": {}})
