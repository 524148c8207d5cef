"""The table of names agrees with the libraries, and says what is wrong before they are imported."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sam_algos.core.options import NAMED
from sam_algos.recipes import RecipeError, check_names, load_recipe
from sam_algos.recipes import catalogue as module
from sam_algos.recipes.catalogue import FILE, catalogue
from sam_algos.recipes.forms import _RANGES, Argument, Form, check, describe
from sam_algos.recipes.libraries import build, text
from tests.recipes.writing import Write


def test_the_table_is_what_the_libraries_say() -> None:
    table = text(build())
    assert FILE.read_text(encoding="utf-8") == table, "run: python -m sam_algos.recipes.libraries"
    assert json.loads(table)["made_for"]["mosaicml"] is not None


@pytest.mark.parametrize("group", ["method", "policy", "perturbation", "descent", "samples", "schedule"])
def test_every_option_of_ours_has_a_range_that_needs_no_import(group: str) -> None:
    types = {"true or false", "an integer", "null"}
    for name, form in catalogue().groups[group].items():
        for option, argument in form.arguments.items():
            for kind in argument.kinds:
                known = kind in NAMED or kind in types or kind.startswith(("one of ", "a part: "))
                assert known, f"{name}.{option}: {kind}"


def test_a_table_for_other_versions_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {
        "made_for": {},
        "names": {"method": {}, "algorithm": {"x": {"arguments": {}, "takes_others": False, "doc": ""}}},
    }
    monkeypatch.setattr(module, "installed", lambda: {"mosaicml": "9.9"})
    monkeypatch.setattr("sam_algos.recipes.libraries.build", lambda: made)
    assert list(catalogue.__wrapped__().groups["algorithm"]) == ["x"]
    monkeypatch.setattr(module, "_version", lambda name: None)  # without Composer there is nothing to make it from
    assert "sam" in catalogue.__wrapped__().groups["algorithm"]


class Open:
    def __init__(self, rate: float, kind: str = "a", rest: Any = None) -> None: ...


def test_a_form_says_what_is_wrong() -> None:
    form = describe(Open, hidden=("rest",))
    assert form == Form({"rate": Argument(("a number",), None), "kind": Argument(("text",), "'a'")}, False, "")
    for arguments, problem in (
        ({}, "x.rate: required"),
        ({"rate": "1"}, "x.rate: must be a number, got '1'"),
        ({"rate": 1, "rest": 1}, "x: unknown argument 'rest'; did you mean 'rate'?"),
    ):
        with pytest.raises(RecipeError) as error:
            check("x", form, arguments)
        assert str(error.value) == problem
    check("x", form, {"rate": 1})


def test_a_function_that_takes_others_checks_them_itself() -> None:
    def build(*, depth: int = 1, **options: Any) -> None: ...

    check("model", describe(build), {"depth": 2, "anything": object()})
    with pytest.raises(RecipeError, match=r"model\.depth: must be an integer"):
        check("model", describe(build), {"depth": "x"})


NAMES = {
    "model.name=small_cn": "model.name: unknown model 'small_cn'; did you mean 'small_cnn'?",
    "model.wdth=3": "model: unknown argument 'wdth'; did you mean 'width'?",
    "optimizer.lr=-.nan": "optimizer.lr: must be a number",
    "optimizer={name: adamw, betas: [0.9, .inf]}": "optimizer.betas.1: must be finite, got inf",
    "scheduler={name: cosin}": "scheduler.name: unknown scheduler 'cosin'",
    "algorithms.sam.rho={name: linear, end: -1}": "algorithms.sam.rho.end: must be a finite number >= 0, got -1",
    "algorithms.sam.rho={name: interval}": "algorithms.sam.rho.name: unknown schedule 'interval'",
    "algorithms.sam.rho={end: 1}": "algorithms.sam.rho.name: required: a part and its arguments",
    "algorithms.sam.policy=interval": "algorithms.sam.policy: must be a policy {name: ...}, or null, got 'interval'",
    "algorithms.mixup.alpha=big": "algorithms.mixup.alpha: must be a number, got 'big'",
    "callbacks.early_stopper={}": "callbacks.early_stopper.monitor: required",
    "loggers.wandb.projct=x": "loggers.wandb: unknown argument 'projct'; did you mean 'project'?",
    "dataloader.num_worker=1": "dataloader: unknown argument 'num_worker'; did you mean",
    "algorithms={sam: {}, asam: {}}": "algorithms: sam and asam cannot be combined",
    "algorithms={SAM: {}, a_sam: {}}": "algorithms: SAM and a_sam cannot be combined",
    "callbacks={speed_monitor: {window_size:3}}": (
        "callbacks.speed_monitor: unknown argument 'window_size:3'; did you mean 'window_size'?; write a space after"
    ),
    "load_path=nothing.pt": "load_path: no such file: nothing.pt",
}


@pytest.mark.parametrize("override", NAMES)
def test_names_are_checked(write: Write, override: str) -> None:
    recipe = load_recipe(write(), [override])
    with pytest.raises(RecipeError) as error:
        check_names(recipe)
    assert str(error.value).startswith(NAMES[override])


def test_ranges_of_the_schema_are_known_by_their_words() -> None:
    load_recipe("digits")
    assert {"a duration > 0, e.g. 20ep or 4000ba", "an integer in [0, 2**32)"} <= set(_RANGES)
