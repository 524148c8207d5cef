from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import environment
from benchmarks.__main__ import main, parse
from benchmarks.report import markdown, page
from benchmarks.results import BenchmarkError, load_result, open_result, rounded

RESULTS = environment.ROOT / "benchmarks" / "results"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the environment once."""
    monkeypatch.setattr(environment, "copy_bandwidth", lambda: 1e10)


def test_environment_is_complete_json():
    found = environment.describe()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"] and found["cores"] and found["versions"]["torch"] and found["code"]
    assert environment.differences(found, environment.describe()) == []


def test_a_copy_takes_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    assert environment.copy_bandwidth(1000, 3) > 0


@pytest.mark.parametrize(("value", "kept"), [(0.123456, 0.1235), (2.0, 2), (98765.4, 98770), (0.0, 0)])
def test_measured_numbers_keep_four_digits(value: float, kept: float):
    assert rounded(value) == kept and isinstance(rounded(value), type(kept))


def open_cost(path: Path, settings: dict[str, Any], **options: bool):
    return open_result(path, "cost", settings, **options)


SAMPLES = {"text [1, 2]": {"samples": {"plain": {"wall": [0.5, 1e-05, 2]}}}}


def test_a_saved_result_is_loaded_again(tmp_path: Path):
    result = open_cost(tmp_path / "new" / "a.json", {"seconds": 1.0})
    result.data = SAMPLES
    result.save()
    assert load_result(result.path) == result
    assert json.loads(result.path.read_text())["schema"] == 2


def test_nothing_is_written_before_anything_was_measured(tmp_path: Path):
    result = open_cost(tmp_path / "a.json", {})
    result.data = {"key": {"samples": {"plain": {}}}}
    result.save()
    assert not result.path.exists()


def test_an_existing_result_is_neither_lost_nor_mixed(tmp_path: Path):
    path = tmp_path / "a.json"
    first = open_cost(path, {"seconds": 1.0})
    first.data = SAMPLES
    first.save()
    with pytest.raises(BenchmarkError, match="--resume continues it"):
        open_cost(path, {"seconds": 1.0})
    with pytest.raises(BenchmarkError, match=r"other settings \(seconds\)"):
        open_cost(path, {"seconds": 2.0}, resume=True)
    resumed = open_cost(path, {"seconds": 1.0}, resume=True)
    assert resumed.data == SAMPLES and len(resumed.environment["sessions"]) == 2
    assert open_cost(path, {"seconds": 2.0}, overwrite=True).data == {}


def test_a_result_of_another_machine_is_not_resumed(tmp_path: Path):
    path = tmp_path / "a.json"
    result = open_cost(path, {})
    result.data = SAMPLES
    result.save()
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
        (["study", "missing.yaml"], "missing.yaml: No such file"),
        (["study", "benchmarks/studies/digits.yaml", "seed"], "seed: write key=value"),
        (["report", "--out", "missing"], "missing: no results there"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("content", ["x", "[1]", "{}", '{"schema": 1}'])
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, content: str):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(BenchmarkError, match=r"not a result of python -m benchmarks \(schema 2\)"):
        load_result(tmp_path / "a.json")


def test_options_may_stand_between_recipe_and_overrides():
    args = parse(["cost", "a/b.yaml", "--quick", "x=1", "y=2"])
    assert (args.recipe, args.overrides, args.name, args.quick) == ("a/b.yaml", ["x=1", "y=2"], "cost-a-quick", True)
    assert args.workloads == ["recipe"], "a recipe that was given is what is measured"
    args = parse(["phases", "x=1"])
    assert (args.recipe, args.overrides, args.name) == ("digits/sgd", ["x=1"], "phases-digits")
    assert parse(["cost"]).workloads == ["recipe", "mlp", "mnist1d", "resnet18"]


def test_help_does_not_wait_for_torch():
    code = "import sys; from benchmarks.__main__ import parse\ntry: parse(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=environment.ROOT, capture_output=True).returncode == 0


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


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_what_is_shown_of_a_result_is_what_was_measured(path: Path):
    assert path.with_suffix(".md").read_text() == markdown(load_result(path)), "python -m benchmarks report"


def test_the_page_shows_all_results():
    assert (RESULTS / "README.md").read_text() == page(RESULTS), "python -m benchmarks report"
