from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sam_algos import METHODS
from sam_algos.recipes import Recipe, RecipeError, check_names, dump_recipe, load_recipe, methods_of, shipped
from sam_algos.recipes.schema import FILE_KEYS, describe
from tests.recipes.writing import TINY, Write


def test_defaults_and_given_values(write: Write) -> None:
    recipe = load_recipe(write())
    assert recipe.model == {"name": "small_cnn", "width": 2}
    assert (recipe.seed, recipe.eval_interval, recipe.algorithms) == (0, "1ep", {})
    assert recipe.save_folder == "runs/{run_name}/checkpoints"


def test_documentation_lists_every_key_in_order() -> None:
    documented = re.findall(r"^    (\w+) \(", describe(), flags=re.MULTILINE)
    assert documented == [*FILE_KEYS, *(key.name for key in dataclasses.fields(Recipe))]


def test_trainer_knows_every_key_that_is_not_ours() -> None:
    from composer import Trainer

    ours = {
        "train_dataset", "eval_dataset", "optimizer", "scheduler", "variables", "run_folder", "dataloader",
        "global_train_batch_size", "global_eval_batch_size", "bootstrap",
    }  # fmt: skip
    keys = {key.name for key in dataclasses.fields(Recipe)}
    assert keys - ours <= set(inspect.signature(Trainer).parameters)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("max_duration=20ep", "max_duration", "20ep"),
        ("max_duration=3", "max_duration", 3),
        ("optimizer.lr=1e-3", "optimizer", {"name": "sgd", "lr": 1e-3}),
        ("algorithms.aesam.rho=0.1", "algorithms", {"aesam": {"rho": 0.1}}),
        ("algorithms.sam={}", "algorithms", {"sam": {}}),
        ("run_name=a-{run_name}", "run_name", "a-{run_name}"),
        ("variables.x=[1, 2]", "variables", {"x": [1, 2]}),
        ("progress_bar=true", "progress_bar", True),
        ("save_folder=null", "save_folder", None),
    ],
)
def test_override(write: Write, override: str, key: str, value: object) -> None:
    assert getattr(load_recipe(write(), [override]), key) == value


def test_interpolation(write: Write) -> None:
    path = write(TINY + "variables: {lr: 0.3}\nscheduler: {name: x, alpha_f: '${variables.lr}'}\n")
    assert load_recipe(path, ["variables.lr=0.5"]).scheduler == {"name": "x", "alpha_f": 0.5}


def test_base_is_relative_to_its_file_and_chains(write: Write) -> None:
    write(name="a/base.yaml")
    write("base: ../a/base.yaml\nseed: 3\noptimizer: {lr: 0.5}\n", name="b/middle.yaml")
    recipe = load_recipe(write("base: middle.yaml\nseed: 4\n", name="b/top.yaml"))
    assert (recipe.seed, recipe.optimizer) == (4, {"name": "sgd", "lr": 0.5})


def test_another_name_replaces_the_section(write: Write) -> None:
    write(name="base.yaml")
    path = write("base: base.yaml\noptimizer: {name: adamw, eps: 0.1}\n")
    assert load_recipe(path).optimizer == {"name": "adamw", "eps": 0.1}
    assert load_recipe(path, ["optimizer.name=radam"]).optimizer == {"name": "radam"}
    assert load_recipe(path, ["optimizer.name=adamw"]).optimizer == {"name": "adamw", "eps": 0.1}


def test_another_spelling_is_the_same_section(write: Write) -> None:
    assert load_recipe(write(), ["optimizer.name=SGD"]).optimizer == {"name": "SGD", "lr": 0.1}


@pytest.mark.parametrize("name", ["007", "12e4567", "1e3", "0x1f", "2024-01-01", "a.b", "no"])
def test_text_is_taken_as_it_stands(write: Write, name: str) -> None:
    assert load_recipe(write(), [f"run_name={name}"]).run_name == name


@pytest.mark.parametrize(
    ("delta", "left"),
    [
        ("algorithms: {asam: {}}", {"sam": {"rho": 1.0}, "mixup": {}, "asam": {}}),
        ("algorithms: {sam: null}", {"mixup": {}}),
        ("algorithms: {sam: null, asam: {rho: 0.5}}", {"mixup": {}, "asam": {"rho": 0.5}}),
        ("algorithms: null", {}),
        ("algorithms: {sam: {rho: 2}}", {"sam": {"rho": 2}, "mixup": {}}),
    ],
)
def test_null_removes_from_the_base(write: Write, delta: str, left: dict[str, object]) -> None:
    write(TINY + "algorithms: {sam: {rho: 1.0}, mixup: {}}\n", name="base.yaml")
    assert load_recipe(write(f"base: base.yaml\n{delta}\n")).algorithms == left


def test_overrides_replace_a_method(write: Write) -> None:
    path = write(TINY + "algorithms: {sam: {rho: 1.0}}\n")
    assert load_recipe(path, ["algorithms.sam=null", "algorithms.asam.rho=2"]).algorithms == {"asam": {"rho": 2}}


def test_dump_reads_back_as_the_same(write: Write) -> None:
    recipe = load_recipe(write(), ["algorithms.aesam.rho=0.1", "variables.a=5", "seed=${variables.a}"])
    assert load_recipe(write(dump_recipe(recipe), name="dumped.yaml")) == recipe


ERRORS = {
    "max_duraton: 1ep": "unknown key 'max_duraton'; did you mean 'max_duration'?",
    "zzz: 1": "unknown key 'zzz'; valid: algorithms, autoresume, ",
    "seed: abc": "seed: must be an integer in [0, 2**32), got 'abc'",
    "seed: -1": "seed: must be an integer in [0, 2**32), got -1",
    "seed: [1]": "seed: ",
    "model: 3": "model: ",
    "model: {width: 3}": "model.name: required",
    "optimizer: {lr: 3}": "optimizer.name: required",
    "max_duration: '???'": "max_duration: required",
    "global_train_batch_size: 0": "global_train_batch_size: must be an integer >= 1, got 0",
    "device_train_microbatch_size: 0": "must be an integer >= 1, or one of 'auto', or null, got 0",
    "progress_bar: perhaps": "progress_bar: ",
    "algorithms: [sam]": "algorithms: ",
    "algorithms: {sam: 0.5}": "algorithms.sam: 0.5 is not a mapping of arguments",
    "algorithms: {sam: }": "algorithms.sam: null removes an entry, and there is none; {} adds one",
    "algorithms: {1: {}}": "the key 1 is not text",
    "seed: ${variables.nothing}": ": Interpolation key 'variables.nothing' not found",
    "seed: ${seed}": ": ",
    "run_name: ${": "run_name",
    "base: nowhere.yaml": "nowhere.yaml: no such recipe; ",
    "base: recipe.yaml": "base: leads back to this file",
    "base: [a.yaml]": "base: ['a.yaml'] is not a path",
    "base: .": ".: no such recipe; ",
    "dataloader: [1]": "dataloader: ",
    "run_name: 1e3": "run_name: must be text, or null, got 1000.0",
    "max_duration: 1e99ep": "max_duration: must be a duration > 0",
}
"""What is wrong with a line of a recipe that is right but for it."""

DOCUMENTS = {
    "seed: 1\nmodel: ]": "not YAML: line 2",
    "a: 1\na: 2": "not YAML: line 2",
    "- a": "not a mapping of keys to values",
    "": "must hold one YAML document, the keys of a recipe; it has none",
    "seed: 1\n---\nseed: 2": "must hold one YAML document, the keys of a recipe; it has 2",
    "a: b: c": "not YAML: line 1",
    "3": "recipe.yaml: ",
}


@pytest.mark.parametrize(("text", "message"), ERRORS.items(), ids=[repr(text) for text in ERRORS])
def test_error(write: Write, text: str, message: str) -> None:
    key = text.split(":")[0]
    others = [line for line in TINY.splitlines() if line.split(":")[0] != key]
    _refused(write("\n".join([text, *others])), message)


@pytest.mark.parametrize(("text", "message"), DOCUMENTS.items(), ids=[repr(text) for text in DOCUMENTS])
def test_document_error(write: Write, text: str, message: str) -> None:
    _refused(write(text), message)


def _refused(path: Path, message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


BAD_OVERRIDES = [
    "max_duration", "=3", "a b=3", "max_duraton=3", "seed.x=3", "seed=[1", "base=x", "algorithms.sam=null",
    "optimizer=adam", ".seed=1", "\n=None", "seed==", "seed=${",
]  # fmt: skip


@pytest.mark.parametrize("override", BAD_OVERRIDES)
def test_bad_override(write: Write, override: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(), [override])
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml: no such recipe; "):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="no such recipe; "):
        load_recipe(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(RecipeError, match=r"binary\.yaml"):
        load_recipe(tmp_path / "binary.yaml")


SHIPPED = [(name, method) for name, path in shipped().items() for method in (None, *methods_of(path))]


@pytest.mark.parametrize(("name", "method"), SHIPPED)
def test_shipped_recipe_is_valid_with_every_row(name: str, method: str | None, tmp_path: Path) -> None:
    recipe = load_recipe(f"{name}/{method}" if method else name, [f"variables.data_path={tmp_path}"])
    check_names(recipe)
    methods = [given for given in recipe.algorithms if given in {*METHODS, "sharpness_aware"}]
    if method is not None:
        assert len(methods) == (method not in ("base", "sgd", "adamw"))
        assert all(method.startswith((found, "bootstrap")) for found in methods)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_tuned_for_the_digits(name: str) -> None:
    assert name in methods_of("digits")
    assert [given for given in load_recipe(f"digits/{name}").algorithms if given in METHODS] == [name]


KEYS = st.sampled_from([*(key.name for key in dataclasses.fields(Recipe)), "base", "name", "sam", "x", ""])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(),
    st.sampled_from(["sgd", "1ep", "???", "${seed}", "${", "${a.b}", "${oc.env:X}", "{run_name}"]),
)  # fmt: skip
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.integers(), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


OVERRIDES = st.builds(
    "{}{}{}".format,
    KEYS | st.text(max_size=5),
    st.sampled_from(["=", ".name=", ".a.b=", ""]),
    st.text(max_size=8) | SCALARS.map(str),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.dictionaries(KEYS, TREES, max_size=4) | TREES, complete=st.booleans())
def test_any_yaml_is_a_recipe_or_one_line(write: Write, tree: object, complete: bool) -> None:
    if complete and isinstance(tree, dict):
        tree = {**yaml.safe_load(TINY), **tree}
    _recipe_or_one_line(write(yaml.safe_dump(tree)), [])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(override=OVERRIDES)
def test_any_override_gives_a_recipe_or_one_line(write: Write, override: str) -> None:
    _recipe_or_one_line(write(), [override])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(alphabet=st.sampled_from("ab:{}[]-,&*!|>'\"#%@` \n\t0~?"), max_size=20))
def test_any_text_gives_a_recipe_or_one_line(write: Write, text: str) -> None:
    _recipe_or_one_line(write(text), [])


def _recipe_or_one_line(path: Path, overrides: list[str]) -> None:
    try:
        recipe = load_recipe(path, overrides)
    except RecipeError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert isinstance(recipe, Recipe)
