"""What is nearer to the user is on top: base, its row, the file, its row, the command line."""

from __future__ import annotations

import dataclasses
import itertools
import json
import typing
from typing import Any

import pytest
import yaml

from sam_algos.recipes import Recipe, RecipeError, dump_recipe, load_recipe, methods_of
from sam_algos.recipes.schema import COLLECTIONS, SECTIONS
from tests.recipes.writing import TINY, Write

LAYERS = [
    "the base's base", "its row", "the base", "its row", "the file", "its row", "an override", "a later override",
]  # fmt: skip

TWO_VALUES = {
    "device": ("cpu", "gpu"),
    "precision": ("fp32", "amp_bf16"),
    "python_log_level": ("info", "debug"),
    "max_duration": ("1ep", "2ep"),
    "eval_interval": ("1ep", "2ep"),
    "save_interval": ("1ep", "2ep"),
    "device_train_microbatch_size": (1, 2),
}


def two_values(key: str) -> tuple[Any, Any]:
    """Two values that a key may have."""
    hint = typing.get_type_hints(Recipe)[key]
    types = [hint, *typing.get_args(hint)]
    if key in TWO_VALUES:
        return TWO_VALUES[key]
    if key in SECTIONS:
        return ({"name": "x", "a": 1}, {"name": "x", "a": 2})
    if key in COLLECTIONS:
        return ({"x": {"a": 1}}, {"x": {"a": 2}})
    if any(typing.get_origin(option) is dict for option in types):
        return ({"a": 1}, {"a": 2})
    return next(values for kind, values in ((bool, (True, False)), (int, (1, 2)), (float, (1, 2)), (str, ("a", "b")))
                if kind in types)  # fmt: skip


@pytest.mark.parametrize("key", [key.name for key in dataclasses.fields(Recipe)])
def test_the_topmost_layer_that_has_a_key_wins(write: Write, key: str) -> None:
    first, second = two_values(key)
    for top, layer in enumerate(LAYERS):
        found = in_layers(write, key, [first] * top + [second])
        assert found == second, layer


def in_layers(write: Write, key: str, values: list[Any]) -> Any:
    """What a key resolves to when the first of `LAYERS` have these values of it."""
    said = [{key: value} for value in values] + [{}] * len(LAYERS)
    heads = [{**yaml.safe_load(TINY), "method": "chosen"}, {"base": "0.yaml"}, {"base": "1.yaml"}]
    paths = []
    for number, head in enumerate(heads):
        own, row = said[2 * number], said[2 * number + 1]
        text = yaml.safe_dump({**head, **own, "methods": {"chosen": row, "other": {"seed": 77}}})
        paths.append(write(text, name=f"{number}.yaml"))
    overrides = [f"{key}={json.dumps(value)}" for value in values[2 * len(heads) :]]
    return getattr(load_recipe(paths[-1], overrides), key)


def test_each_layer_of_a_mapping_keeps_what_the_others_do_not_mention(write: Write) -> None:
    names = ["base", "row", "mine", "mine_row", "override"]
    layers = [{"optimizer": {"a": i, names[i]: i}, "algorithms": {"ema": {"a": i, names[i]: i}}} for i in range(4)]
    base = {**yaml.safe_load(TINY), **layers[0], "methods": {"chosen": layers[1]}}
    base["optimizer"] = {"name": "sgd", **layers[0]["optimizer"]}
    write(yaml.safe_dump(base), name="base.yaml")
    mine = {"base": "base.yaml", "method": "chosen", **layers[2], "methods": {"chosen": layers[3]}}
    recipe = load_recipe(write(yaml.safe_dump(mine)), [f"{key}.override=4" for key in ("optimizer", "algorithms.ema")])
    expected = {"a": 3, **{name: i for i, name in enumerate(names)}}
    assert recipe.optimizer == {"name": "sgd", **expected}
    assert recipe.algorithms == {"ema": expected}


def test_files_of_a_sweep_are_different_trainings(write: Write) -> None:
    for rho in (0.05, 0.1):
        path = write(f"base: digits\nmethod: sam\nalgorithms: {{sam: {{rho: {rho}}}}}\n")
        for overrides in ([], ["method=sam"]):
            assert load_recipe(path, overrides).algorithms["sam"] == {"rho": rho}
        assert load_recipe(path, ["algorithms.sam.rho=0.2"]).algorithms["sam"] == {"rho": 0.2}


def test_a_null_in_the_file_takes_away_what_the_bases_row_adds(write: Write) -> None:
    path = write("base: digits\nmethod: stablesam\nalgorithms: {label_smoothing: null}\n")
    assert list(load_recipe(path).algorithms) == ["stablesam"]


def test_a_section_with_another_name_takes_nothing_from_the_bases_row(write: Write) -> None:
    path = write("base: digits\nmethod: esam\noptimizer: {name: adamw, lr: 0.01}\n")
    assert load_recipe(path).optimizer == {"name": "adamw", "lr": 0.01}
    path = write("base: digits\nmethod: esam\nmethods: {esam: {optimizer: {name: adamw}}}\n")
    assert load_recipe(path).optimizer == {"name": "adamw"}


METHODS_OF_FILES = {
    "method: asam": {"asam": {}},
    "method: sam": {"sam": {"rho": 1.0}},
    "method: null": {},
    "method: sgd": {},
    "algorithms: {sam: {interval: 2}}": {"sam": {"rho": 1.0, "interval": 2}},
    "algorithms: {sam: null, asam: {rho: 2}}": {"asam": {"rho": 2}},
    "algorithms: {SAM: {rho: 2}}": {"sam": {"rho": 2}},
    "method: a_sam\nalgorithms: {ASAM: {rho: 2}}": {"ASAM": {"rho": 2}},
}
"""What a file over a base with SAM trains with."""


@pytest.mark.parametrize("text", METHODS_OF_FILES)
def test_a_method_takes_the_place_of_those_below(write: Write, text: str) -> None:
    write(TINY + "algorithms: {sam: {rho: 1.0}}\n", name="base.yaml")
    assert load_recipe(write(f"base: base.yaml\n{text}\n")).algorithms == METHODS_OF_FILES[text]


ASKED = {
    ("recipe/asam", ""): {"asam": {"rho": 4.0}},
    ("recipe", "method=asam"): {"asam": {"rho": 4.0}},
    ("recipe/asam", "method=sam"): {"sam": {"rho": 0.05}},
    ("recipe", "method=null"): {},
    ("recipe", "method=sgd"): {},
    ("recipe", "method=bootstrap"): {"sam": {"rho": 0.25}},
    ("recipe", "algorithms={sam: null, asam: {}}"): {"asam": {}},
}


@pytest.mark.parametrize(("name", "override"), ASKED)
def test_a_method_that_is_asked_for_takes_the_place_of_the_files(write: Write, name: str, override: str) -> None:
    folder = write("base: digits\nmethod: sam\nalgorithms: {label_smoothing: null, sam: {rho: 0.05}}\n").parent
    assert load_recipe(folder / name, [override] if override else []).algorithms == ASKED[name, override]


def test_a_base_with_its_method_is_below_the_file(write: Write) -> None:
    path = write("base: digits/sam\nalgorithms: {sam: {interval: 2}, label_smoothing: null}\n")
    assert load_recipe(path).algorithms == {"sam": {"rho": 0.25, "interval": 2}}
    path = write("base: digits/sam\nmethod: asam\nalgorithms: {label_smoothing: null}\n")
    assert load_recipe(path).algorithms == {"asam": {"rho": 4.0}}


@pytest.mark.parametrize(
    ("rows", "names", "rho"),
    [
        ("{sam: {algorithms: {sam: {interval: 2}}}}", ["asam", "sam"], {"rho": 0.1, "interval": 2}),
        ("{SAM: {algorithms: {sam: {rho: 0.2}}}}", ["asam", "sam", "SAM"], {"rho": 0.2}),
        ("{sam: null}", ["asam", "sam"], {}),
        ("null", [], {}),
    ],
)
def test_a_table_is_laid_over_the_bases_row_by_row(write: Write, rows: str, names: list[str], rho: object) -> None:
    table = "methods: {asam: {seed: 3}, sam: {algorithms: {sam: {rho: 0.1}}}}\n"
    write(TINY + table, name="base.yaml")
    path = write(f"base: base.yaml\nmethod: sam\nmethods: {rows}\n")
    assert load_recipe(path).algorithms == {"sam": rho}
    assert sorted(methods_of(path)) == sorted(names)


def test_a_row_in_another_spelling_adds_its_method(write: Write) -> None:
    assert load_recipe(write(TINY + "method: sam\nmethods: {SAM: {seed: 3}}\n")).algorithms == {"sam": {}}


def test_an_optimizer_that_another_one_replaced_is_no_method(write: Write) -> None:
    path = write(TINY + "method: sgd\n")
    with pytest.raises(RecipeError, match="method: unknown method 'sgd'"):
        load_recipe(path, ["optimizer.name=adamw"])


@pytest.mark.parametrize("order", [*itertools.permutations(["optimizer.lr=0.5", "optimizer.name=adamw", "method=sam"])])
def test_the_order_of_overrides_does_not_matter(write: Write, order: tuple[str, ...]) -> None:
    recipe = load_recipe(write(), order)
    assert (recipe.optimizer, recipe.algorithms) == ({"name": "adamw", "lr": 0.5}, {"sam": {}})


def test_another_part_replaces_the_part_below_in_every_method(write: Write) -> None:
    base = "algorithms: {aesam: {rho: {name: linear, start: 0.2}, perturbation: {name: lp, p: 1}, interval: 3}}\n"
    write(TINY + base, name="base.yaml")
    above = "algorithms: {aesam: {rho: {name: cosine, end: 0.1}, perturbation: {name: adaptive}}}\n"
    found = load_recipe(write(f"base: base.yaml\n{above}")).algorithms["aesam"]
    assert found == {"rho": {"name": "cosine", "end": 0.1}, "perturbation": {"name": "adaptive"}, "interval": 3}


def test_an_entry_in_two_spellings_is_an_error(write: Write) -> None:
    with pytest.raises(RecipeError, match="algorithms: label_smoothing and LabelSmoothing are the same: write one of"):
        load_recipe(write(TINY + "algorithms: {label_smoothing: {}, LabelSmoothing: {smoothing: 0.2}}\n"))


def test_an_argument_called_name_is_no_other_entry(write: Write) -> None:
    write(TINY + "loggers: {wandb: {name: first, project: p}}\n", name="base.yaml")
    recipe = load_recipe(write("base: base.yaml\nloggers: {wandb: {name: second}}\n"))
    assert recipe.loggers == {"wandb": {"name": "second", "project": "p"}}


NO_MAPPINGS = {
    "algorithms: [sam]": "algorithms: must map each algorithm's name to its arguments, got ['sam']",
    "algorithms: sam": "its arguments, got 'sam'; write algorithms.sam={}",
    "algorithms: 5": "algorithms: must map each algorithm's name to its arguments, got 5",
    "algorithms: {sam: 0.3}": "algorithms.sam: 0.3 is not a mapping of arguments; write algorithms.sam={}",
    "algorithms: {sam: [0.3]}": "algorithms.sam: [0.3] is not a mapping of arguments",
    "callbacks: [lr_monitor]": "callbacks: must map each callback's name",
    "optimizer: sgd": "optimizer: must be a mapping, got 'sgd'",
    "scheduler: cosine": "scheduler: must be a mapping, or null, got 'cosine'",
    "dataloader: 4": "dataloader: must be a mapping, got 4",
}


HIDES: dict[str, Any] = {
    "algorithms": {"sam": {}}, "callbacks": {"x": {}}, "dataloader": {"num_workers": 1},
    "optimizer": {"name": "sgd", "lr": 0.1}, "scheduler": {"name": "cosine"},
}  # fmt: skip
"""What other layers say."""


@pytest.mark.parametrize("where", ["the file", "its row", "the base", "the base's row"])
@pytest.mark.parametrize("text", NO_MAPPINGS)
def test_what_is_no_mapping_is_an_error_though_another_layer_would_hide_it(write: Write, text: str, where: str) -> None:
    wrong, right = yaml.safe_load(text), {**yaml.safe_load(TINY), **HIDES}
    mine, base = {"base": "base.yaml", "method": "sam"}, right
    if where == "the file":
        mine |= {**wrong, "methods": {"sam": HIDES}}
    elif where == "its row":
        mine |= {"methods": {"sam": wrong}}
    else:
        base = {**right, **wrong} if where == "the base" else {**right, "methods": {"sam": wrong}}
        mine |= HIDES
    write(yaml.safe_dump(base), name="base.yaml")
    path = write(yaml.safe_dump(mine))
    with pytest.raises(RecipeError) as error:
        load_recipe(path, [f"{key}={json.dumps(HIDES[key])}" for key in wrong])
    assert NO_MAPPINGS[text] in str(error.value) and ".yaml: " in str(error.value)


def test_an_interpolation_is_not_replaced_in_silence(write: Write) -> None:
    variables = (
        "variables: {sam: {interval: 2}, all: {sam: {interval: 2}}}\nmethods: {sam: {algorithms: {sam: {rho: 1}}}}\n"
    )
    write(TINY + variables, name="base.yaml")
    for algorithms in ("${variables.all}", {"sam": "${variables.sam}"}):
        path = write(yaml.safe_dump({"base": "base.yaml", "method": "sam", "algorithms": algorithms}))
        with pytest.raises(
            RecipeError, match=r"algorithms(\.sam)?: '\${variables\.\w+}' cannot be laid together with "
        ):
            load_recipe(path)
    path = write(yaml.safe_dump({"base": "base.yaml", "algorithms": "${variables.all}"}))
    assert load_recipe(path).algorithms == {"sam": {"interval": 2}}


def test_a_runs_own_recipe_resolves_to_itself(write: Write) -> None:
    path = write("base: digits\nmethod: sam\nalgorithms: {sam: {rho: 0.05}}\nmethods: {sam: {seed: 5}}\n")
    recipe = load_recipe(path, ["optimizer.lr=0.2"])
    assert load_recipe(write(dump_recipe(recipe), name="written.yaml")) == recipe
