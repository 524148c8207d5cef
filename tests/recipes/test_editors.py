"""The JSON Schema that editors complete and check recipes by accepts what is right, and refuses what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from sam_algos.recipes import Recipe, load_recipe, shipped
from sam_algos.recipes.naming.catalogue import catalogue
from sam_algos.recipes.reading.editors import json_schema
from tests.recipes.writing import TINY, Write

Problems = Callable[[Any], list[str]]


@pytest.fixture(scope="module")
def problems() -> Problems:
    """The keys at fault, as an editor marks them."""
    validator = pytest.importorskip("jsonschema").Draft7Validator
    validator.check_schema(schema := json_schema())
    return lambda recipe: [error.json_path for error in validator(schema).iter_errors(recipe)]


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_have_no_problems(name: str, problems: Problems) -> None:
    assert problems(yaml.safe_load(shipped()[name].read_text())) == []


RIGHT = {
    "optimizer: {name: sgd, lr: 0.1}": "names in any spelling",
    "optimizer: {lr: 0.1}": "a section that changes its base",
    "seed: ${variables.seed}": "interpolations",
    "max_duration: 1.5e3ba": "durations",
    "eval_interval: .1dur": "intervals",
    "algorithms: {sam: null, A_SAM: {rho: {name: linear, end: 0.1}}}": "entries that are removed, and parts",
    "methods: {a: null, b: {seed: 3}}": "rows",
    "compare: {methods: [sgd, sam], seeds: 3}": "comparisons",
    "device: gpu": "choices",
}


@pytest.mark.parametrize("line", RIGHT)
def test_what_is_right_is_accepted(line: str, problems: Problems, write: Write) -> None:
    recipe = yaml.safe_load(line)
    assert problems(recipe) == []
    base = yaml.safe_load(TINY + "algorithms: {sam: {}}\nvariables: {seed: 1}\n")
    assert isinstance(load_recipe(write(yaml.safe_dump(base), "base.yaml").parent / "base.yaml"), Recipe)
    assert isinstance(load_recipe(write(f"base: base.yaml\n{line}\n")), Recipe)


WRONG = {
    "max_duraton: 1ep": "$",
    "max_duration: soon": "$.max_duration",
    "max_duration: 0ep": "$.max_duration",
    "seed: -1": "$.seed",
    "precision: fp33": "$.precision",
    "optimizer: {name: sdg}": "$.optimizer",
    "optimizer: {name: sgd, momentun: 0.9}": "$.optimizer",
    "algorithms: {aesma: {}}": "$.algorithms",
    "algorithms: {sam: {rho: -1}}": "$.algorithms",
    "algorithms: {sam: {rho: {name: linear, end: -1}}}": "$.algorithms",
    "methods: {a: {sed: 1}}": "$.methods.a",
    "compare: {methods: []}": "$.compare.methods",
    "dataloader: {num_worker: 1}": "$.dataloader",
}


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_is_marked(line: str, problems: Problems) -> None:
    assert problems(yaml.safe_load(line)) == [WRONG[line]]


def test_every_key_and_every_name_is_completed() -> None:
    schema = json_schema()
    assert {*vars(Recipe()), "base", "method", "methods", "compare"} == schema["properties"].keys()
    assert all(key["description"] for name, key in schema["properties"].items())
    for group in ("algorithm", "callback", "logger"):
        assert schema["$defs"][group]["properties"].keys() == catalogue().groups[group].keys()
    for group in ("optimizer", "model", "dataset", "scheduler", "policy", "schedule"):
        assert schema["$defs"][group]["properties"]["name"]["anyOf"][0]["enum"] == sorted(catalogue().groups[group])
