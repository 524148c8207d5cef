from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sam_algos import METHODS
from sam_algos.command import COMMANDS, main
from sam_algos.recipes import methods_of, shipped
from sam_algos.recipes.naming.catalogue import catalogue
from tests.recipes.writing import Write

Capture = pytest.CaptureFixture[str]
Output = Callable[..., str]


@pytest.fixture
def output(capsys: Capture) -> Output:
    """What a command prints, when it ends well."""

    def run(*argv: str, code: int = 0) -> str:
        assert main(argv) == code
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return run


@pytest.mark.parametrize("argv", [[], ["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_names_what_there_is(capsys: Capture, argv: list[str]) -> None:
    try:
        assert main(argv) == 0
    except SystemExit as end:
        assert end.code == 0
    text = capsys.readouterr().out
    assert "sam-algos" in text and "examples:" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_help_of_the_command_lists_the_commands(output: Output) -> None:
    assert all(re.search(rf"^  {name} +{what}$", output(), re.MULTILINE) for name, what in COMMANDS.items())


def test_version(output: Output) -> None:
    assert re.fullmatch(r"sam-algos \d+\.\d+\.\d+, torch \S+, mosaicml \S+\n", output("--version"))


def test_an_unknown_command_names_the_nearest(capsys: Capture) -> None:
    assert main(["trian", "digits"]) == 2
    assert capsys.readouterr().err == "error: trian: no such command; did you mean 'train'?\n"


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_are_valid_where_their_data_is(output: Output, name: str, tmp_path: Path) -> None:
    assert output("validate", name, f"variables.data_path={tmp_path}") == f"valid: {name}\n"


def test_validate_as_json(write: Write, output: Output) -> None:
    assert json.loads(output("validate", "--json", "digits")) == {"valid": True}
    wrong = json.loads(output("validate", "--json", str(write()), "algorithms.looksam.k=0", code=2))
    assert wrong == {"valid": False, "where": "algorithms.looksam.k", "problem": "must be an integer >= 1, got 0"}


def test_validate_says_what_training_would(write: Write, capsys: Capture) -> None:
    for command in ("validate", "train", "show", "compare"):
        assert main([command, str(write()), "algorithms.looksam.k=0"]) == 2
        assert capsys.readouterr().err == "error: algorithms.looksam.k: must be an integer >= 1, got 0\n"
        assert list(Path.cwd().iterdir()) == []


LIGHT = [
    "['validate', 'digits']", "['validate', 'digits', 'algorithms.aesam.rho=-1']", "['list']", "['list', 'methods']",
    "['explain', 'aesam']", "['--version']", "['nothing']", "['train', 'digits', 'optimizer.nam=x']",
]  # fmt: skip


def test_what_trains_nothing_imports_neither_torch_nor_composer() -> None:
    code = (
        "import sys\nfrom sam_algos.command import main\n"
        f"for argv in [{', '.join(LIGHT)}]: main(argv)\n"
        "assert not {'torch', 'composer', 'torchvision', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_show_counts_what_will_be_trained(write: Write, output: Output) -> None:
    path = str(write())
    text = output("show", path, "global_train_batch_size=100", "max_duration=3ep", "method=sam")
    assert "algorithms:\n  sam: {}\n" in text
    assert "# samples: 1,077 to train on, 360 to evaluate on\n# steps: 10 an epoch, 30 in all\n" in text
    shown: dict[str, Any] = json.loads(output("show", "--json", path, "max_duration=7ba"))
    assert (shown["recipe"]["max_duration"], shown["steps"], shown["steps_per_epoch"]) == ("7ba", 7, 1)
    weights = 9 * (1 * 2 + 2 * 4 + 4 * 8) + 2 * (2 + 4 + 8) + 8 * 10 + 10  # convolutions, BatchNorm, the linear layer
    assert shown["parameters"] == weights


def test_list_has_all_names(output: Output) -> None:
    listed = dict(line.split(": ", 1) for line in output("list").splitlines())
    assert {*METHODS, "sharpness_aware"} == set(listed["methods"].split(", "))
    assert len(listed["algorithms"].split(", ")) == 28
    assert set(listed["recipes"].split(", ")) == set(shipped())
    assert "digits" in listed["datasets"] and "wrn28_10" in listed["models"]
    assert json.loads(output("list", "--json"))["methods"] == listed["methods"].split(", ")


def test_list_of_one_kind_says_what_each_is(output: Output) -> None:
    assert re.search(r"^sam +Sharpness-aware minimization \(Foret et al\., 2021, http", output("list", "methods"), re.M)
    assert re.search(r"^digits +method=sgd, ", output("list", "recipes"), re.M)
    assert {"bernoulli", "pnorm", "mixed", "groups", "cosine"} <= set(json.loads(output("list", "parts", "--json")))


@pytest.mark.parametrize("name", [*METHODS, "gradient_norm", "mixup"])
def test_explain(output: Output, name: str) -> None:
    text = output("explain", name)
    assert "`" not in text and "**" not in text
    group = next(forms for forms in catalogue().groups.values() if name in forms)
    for argument in group[name].arguments:
        assert re.search(rf"^    {argument} .*; (default|required)", text, re.MULTILINE)
    card = json.loads(output("explain", "--json", name))
    assert list(card["arguments"]) == list(group[name].arguments)


def test_explain_shows_a_recipe(write: Write, output: Output) -> None:
    text = output("explain", "digits")
    assert text.startswith("digits is a recipe. Resolved: sam-algos show digits\n\n# 1077 handwritten digits")
    assert text.endswith(shipped()["digits"].read_text())
    assert output("explain", "digits/sam").startswith("digits/sam is a recipe, here with method=sam. ")
    path = write("base: digits\n")
    assert output("explain", str(path)) == f"{path} is a recipe. Resolved: sam-algos show {path}\n\nbase: digits\n"
    assert json.loads(output("explain", "--json", "cifar10/resnet18"))["kind"] == "recipe"


@pytest.mark.parametrize("group", ["dataset", "model", "optimizer", "scheduler", "callback", "logger"])
def test_explain_knows_whatever_list_names(output: Output, group: str) -> None:
    names = json.loads(output("list", "--json"))[f"{group}s"]
    for name in names:
        card = json.loads(output("explain", "--json", name))
        expected = "recipe" if name in shipped() else "schedule" if name == "cosine" else group
        assert card["kind"] == expected
        if expected == group:
            assert list(card["arguments"]) == list(catalogue().groups[group][name].arguments)


def test_explain_names_the_nearest(capsys: Capture) -> None:
    assert main(["explain", "look_sma"]) == 2
    assert "did you mean 'looksam'?" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["list"], ["validate", "digits"]])
def test_a_reader_that_has_seen_enough_is_no_error(argv: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "sam_algos.command", *argv]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_row_is_a_name(output: Output) -> None:
    for row in methods_of("digits"):
        by_name, by_key = (
            json.loads(output("show", "--json", *argv)) for argv in ((f"digits/{row}",), ("digits", f"method={row}"))
        )
        assert by_name == by_key
