from __future__ import annotations

from pathlib import Path

import pytest

from sam_algos.recipes import RecipeError, find, load_recipe, methods_of, shipped
from tests.recipes.writing import TINY, Write

ROWS = """
method: b
methods:
  a: {seed: 1}
  b: {seed: 2, optimizer: {name: adamw}, algorithms: {mixup: null, sam: {rho: 0.5}}}
  asam: {}
algorithms: {mixup: {}}
"""


def test_shipped_recipes_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("digits").path.name == "digits.yaml"
    assert find("cifar10/resnet18/sam").path.parts[-2:] == ("cifar10", "resnet18.yaml")
    assert {"digits", "cifar10/resnet18", "cifar100/wrn28_10"} <= set(shipped())


def test_a_recipe_of_the_users_own_comes_first(write: Write) -> None:
    write(name="work/digits.yaml")
    assert (find("digits").path, find("digits/sam").method) == (Path("digits.yaml"), "sam")
    write(name="work/digits/sam.yaml")
    assert find("digits/sam").method is None


def test_a_file_is_found_with_and_without_its_ending(write: Write) -> None:
    path = write(name="set/plain.yaml")
    assert find(path).path == find(path.with_suffix("")).path == path
    assert (find("../set/plain.yaml").label, find("digits/sam").label, find("digits").label) == (
        "set-plain", "digits-sam", "digits",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["", ".", "/", "no/such", "x" * 5000, "digts", "\0"])
def test_what_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(RecipeError, match="no such recipe; ") as error:
        find(name)
    assert "\n" not in str(error.value)
    if name == "digts":
        assert str(error.value) == "digts: no such recipe; did you mean 'digits'?"


def test_a_row_is_laid_over_the_file_and_overrides_over_the_row(write: Write) -> None:
    path = write(TINY + ROWS)
    assert methods_of(path) == ["a", "b", "asam"]
    recipe = load_recipe(path)
    assert (recipe.seed, recipe.optimizer, recipe.algorithms) == (2, {"name": "adamw"}, {"sam": {"rho": 0.5}})
    assert load_recipe(path, ["seed=7", "algorithms.sam.rho=1"]).algorithms == {"sam": {"rho": 1}}
    assert load_recipe(path.with_suffix("") / "a").seed == 1
    assert load_recipe(path.with_suffix("") / "a", ["method=b"]).seed == 2
    plain = load_recipe(path, ["method=null"])
    assert (plain.seed, plain.algorithms) == (0, {"mixup": {}})


def test_a_method_needs_no_row(write: Write) -> None:
    path = write(TINY + ROWS)
    assert load_recipe(path, ["method=asam"]).algorithms == {"mixup": {}, "asam": {}}
    assert load_recipe(path, ["method=looksam", "algorithms.looksam.k=2"]).algorithms["looksam"] == {"k": 2}
    assert load_recipe(path, ["method=sgd"]) == load_recipe(path, ["method=null"])
    with pytest.raises(RecipeError, match="method: unknown method 'lookasm'; did you mean 'looksam'"):
        load_recipe(path, ["method=lookasm"])


def test_rows_of_a_base_are_changed_one_by_one(write: Write) -> None:
    write(TINY + ROWS, name="base.yaml")
    path = write("base: base.yaml\nmethods: {a: {seed: 9}}\n")
    assert [load_recipe(path, [f"method={row}"]).seed for row in ("a", "b")] == [9, 2]


def test_a_base_may_be_a_shipped_recipe(write: Write) -> None:
    assert load_recipe(write("base: digits/asam\n")).algorithms["asam"] == {"rho": 4.0}
    recipe = load_recipe(write("base: digits\nmax_duration: 3ep\nmethod: sam\n"))
    assert (recipe.max_duration, recipe.algorithms["sam"]) == ("3ep", {"rho": 0.25})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("methods: {a: {sed: 1}}", "methods.a: unknown key 'sed'; did you mean 'seed'?"),
        ("methods: {a: {method: b}}", "methods.a: unknown key 'method'"),
        ("methods: {a: 3}", "methods.a: not a mapping"),
        ("methods: [a]", "methods: not a mapping"),
        ("method: [a]", "method: unknown method ['a']"),
        ("method: a\nmethods: {a: {algorithms: {sam: null}}}", "methods.a: algorithms.sam: null removes an entry"),
    ],
)
def test_wrong_rows_are_one_line(write: Write, rows: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(write(f"{TINY}{rows}\n"))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_method_that_is_asked_for_takes_the_place_of_the_files_own(write: Write) -> None:
    path = write(TINY + "algorithms: {mixup: {}, SAM: {rho: 0.1}}\n")
    assert load_recipe(path).algorithms == {"mixup": {}, "SAM": {"rho": 0.1}}
    for nothing in ("null", "sgd", "SGD"):
        assert load_recipe(path, [f"method={nothing}"]).algorithms == {"mixup": {}}
    assert load_recipe(path, ["method=aesam"]).algorithms == {"mixup": {}, "aesam": {}}
    assert load_recipe(path, ["method=sam"]).algorithms == {"mixup": {}, "SAM": {"rho": 0.1}}  # its options stay
    assert load_recipe(path, ["optimizer.name=adam", "method=adam"]).algorithms == {"mixup": {}}


@pytest.mark.parametrize("method", ["look_sam", "LookSAM", "B"])
def test_a_method_in_any_spelling(write: Write, method: str) -> None:
    algorithms = load_recipe(write(TINY + ROWS), [f"method={method}"]).algorithms
    assert algorithms == ({"sam": {"rho": 0.5}} if method == "B" else {"mixup": {}, "looksam": {}})
