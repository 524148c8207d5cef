from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import environment
from benchmarks.__main__ import main, parse
from benchmarks.results import BenchmarkError, load_result, open_result


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the environment once."""
    monkeypatch.setattr(environment, "copy_bandwidth", lambda: 1e10)


def test_environment_is_complete_json():
    found = environment.describe()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"] and found["cores"] and found["versions"]["torch"] and found["code"]
    assert environment.differences(found, environment.describe()) == []


def test_a_copy_takes_time():
    assert environment.Copy(1000)() > 0


def open_cost(path: Path, settings: dict[str, Any], **options: bool):
    return open_result(path, "cost", settings, **options)


def test_a_saved_result_is_loaded_again(tmp_path: Path):
    result = open_cost(tmp_path / "new" / "a.json", {"seconds": 1.0})
    result.data = {"text [1, 2]": [[0.5, 1e-05, -2], []]}
    result.save()
    assert load_result(result.path) == result
    assert json.loads(result.path.read_text())["schema"] == 1


def test_an_existing_result_is_neither_lost_nor_mixed(tmp_path: Path):
    path = tmp_path / "a.json"
    first = open_cost(path, {"seconds": 1.0})
    first.data = {"kept": 1}
    first.save()
    with pytest.raises(BenchmarkError, match="--resume goes on with it"):
        open_cost(path, {"seconds": 1.0})
    with pytest.raises(BenchmarkError, match=r"other settings \(seconds\)"):
        open_cost(path, {"seconds": 2.0}, resume=True)
    resumed = open_cost(path, {"seconds": 1.0}, resume=True)
    assert resumed.data == {"kept": 1} and len(resumed.environment["sessions"]) == 2
    assert open_cost(path, {"seconds": 2.0}, overwrite=True).data == {}


def test_a_result_of_another_machine_is_not_resumed(tmp_path: Path):
    path = tmp_path / "a.json"
    open_cost(path, {}).save()
    content = json.loads(path.read_text())
    content["environment"]["cpu"] = "another"
    path.write_text(json.dumps(content))
    with pytest.raises(BenchmarkError, match=r"measured elsewhere \(cpu differ\)"):
        open_cost(path, {}, resume=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required"),
        (["costs"], "invalid choice"),
        (["cost", "--bad"], "unrecognized arguments: --bad"),
        (["cost", "--rounds", "0"], "'0' is not an integer >= 1"),
        (["cost", "--name", "a/b"], "--name 'a/b'"),
        (["report", "missing.json"], "missing.json: No such file"),
        (["report", "pyproject.toml"], "pyproject.toml: not JSON"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_options_may_stand_between_recipe_and_overrides():
    args = parse(["cost", "a/b.yaml", "--quick", "x=1", "y=2"])
    assert (args.recipe, args.overrides, args.name, args.quick) == (
        "a/b.yaml",
        ["x=1", "y=2"],
        "cost-a-quick",
        True,
    )
    args = parse(["pareto", "x=1"])
    assert (args.recipe, args.overrides, args.name) == ("yamls/digits/sgd.yaml", ["x=1"], "pareto-digits")


def test_a_process_is_restarted_once(monkeypatch: pytest.MonkeyPatch):
    started: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr("os.execve", lambda _, command, env: started.append((command, env)))
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environment.restart_if_unprepared(["cost", "--quick"], 2)
    (command, env) = started[0]
    assert command[1:] == ["-m", "benchmarks", "cost", "--quick"]
    assert env["OMP_NUM_THREADS"] == "2" and env["MALLOC_TOP_PAD_"] == "1"
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    environment.restart_if_unprepared(["cost", "--quick"], 2)
    assert len(started) == 1
