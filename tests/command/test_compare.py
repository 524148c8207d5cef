from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer

from sam_algos.command import main
from sam_algos.recipes.results import Headline, Summary, read_metrics
from sam_algos.recipes.results.comparison import Result, conclusion, draw, standings, table
from tests.recipes.writing import TINY, Write

Capture = pytest.CaptureFixture[str]

ROWS = "methods: {sgd: {optimizer: {lr: 0.2}}, aesam: {max_duration: 2ep, algorithms: {aesam: {rho: 0.1}}}}\n"


def recipe(write: Write, more: str = "") -> str:
    return str(write(TINY + ROWS + more))


def compare(*argv: str) -> int:
    """In this process."""
    return main(["compare", *argv, "--jobs", "1"])


def test_two_methods_side_by_side(write: Write, capsys: Capture) -> None:
    assert compare(recipe(write), "run_name=both", "global_train_batch_size=360", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    sgd, aesam = found["results"]
    assert (sgd["method"], sgd["fraction"], sgd["gradients"], sgd["folder"]) == ("sgd", 0.0, 2, "runs/both/sgd")
    assert (aesam["method"], aesam["folder"]) == ("aesam", "runs/both/aesam")
    assert aesam["gradients"] == pytest.approx(4 * (1 + aesam["fraction"]))
    assert (sgd["sharp_fraction"], aesam["sharp_fraction"]) == (None, aesam["fraction"])
    assert 0 < sgd["cpu_seconds"] < sgd["train_seconds"] * 8
    assert [row["method"] for row in found["table"]] == ["sgd", "aesam"]
    assert found["table"][1]["gradients"] == aesam["gradients"] / 2
    assert found["conclusion"].startswith("In a single run each, which is mostly noise, AE-SAM is ")
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
    assert Path("runs/both/aesam/checkpoints").is_dir()


def test_an_interrupted_comparison_goes_on(write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = [recipe(write), "--methods", "sgd,asam", "--seeds", "2", "run_name=long", "autoresume=true"]
    fit, fitted = Trainer.fit, []

    def until(count: int) -> Any:
        def counted(self: Trainer) -> None:
            if len(fitted) == count:
                raise KeyboardInterrupt
            fitted.append(self)
            fit(self)

        return counted

    monkeypatch.setattr(Trainer, "fit", until(3))
    assert compare(*argv) == 130
    monkeypatch.setattr(Trainer, "fit", until(4))
    capsys.readouterr()
    assert compare(*argv) == 0
    captured = capsys.readouterr()
    assert len(fitted) == 4
    assert captured.err.splitlines()[0] == "[1/4] sgd, seed 1000"
    assert re.search(r"^method +accuracy % +vs sgd +gradients +CPU\n", captured.out, re.M)
    assert re.search(r"^asam +\d+\.\d ± \d+\.\d +[-+]\d+\.\d ± \d+\.\d +2\.00 +\d\.\d\d$", captured.out, re.M)
    assert max(map(len, captured.out.split("\n\npicture")[0].splitlines())) <= 60
    last = captured.out.splitlines()[-1]
    assert re.search(r"ASAM is \d+\.\d ± \d+\.\d points (better|worse) than SGD for 2\.00 times the gradients\.$", last)


def test_everything_is_checked_before_anything_is_trained(write: Write, capsys: Capture) -> None:
    for methods, message in {
        "sgd,aesm": "error: method: unknown method 'aesm'; did you",
        ",": "error: --methods:",
    }.items():
        assert compare(recipe(write), "--methods", methods) == 2
        assert capsys.readouterr().err.startswith(message)
        assert list(Path.cwd().iterdir()) == []
    for option in ("--seeds", "--jobs"):
        with pytest.raises(SystemExit) as end:
            main(["compare", recipe(write), option, "0"])
        assert end.value.code == 2
        assert f"{option}: must be an integer >= 1, got '0'" in capsys.readouterr().err


def test_plain_training_is_plain_whatever_the_file_trains_with(write: Write, capsys: Capture) -> None:
    path = str(write(TINY + "algorithms: {sam: {rho: 0.1}}\n"))
    assert compare(path, "optimizer.name=adam", "--json", "max_duration=1ba") == 0
    adam, aesam = json.loads(capsys.readouterr().out)["results"]
    assert (adam["method"], adam["fraction"], adam["gradients"]) == ("adam", 0.0, 1)
    assert (aesam["method"], aesam["gradients"] >= 1) == ("aesam", True)


WRONG = {
    "method=sam": "error: --methods: says what is compared: write --methods sgd,sam\n",
    "bootstrap=1": "error: bootstrap: sgd trains several times; compare trains each method once\n",
}


@pytest.mark.parametrize("override", WRONG)
def test_what_cannot_be_compared(write: Write, capsys: Capture, override: str) -> None:
    assert compare(recipe(write), override) == 2
    assert capsys.readouterr().err == WRONG[override]
    assert compare("digits/sam") == 2
    assert capsys.readouterr().err == WRONG["method=sam"]


def test_two_comparisons_never_share_a_folder(write: Write, capsys: Capture) -> None:
    argv = [recipe(write), "run_name=both", "max_duration=1ba", "--methods"]
    assert compare(*argv, "sgd") == 0
    picture = Path("runs/both/compare.png").stat().st_mtime_ns
    capsys.readouterr()
    assert compare(*argv, "asam") == 2
    assert capsys.readouterr().err.startswith("error: run_name: runs/both exists; take another name")
    assert Path("runs/both/compare.png").stat().st_mtime_ns == picture


@pytest.mark.parametrize("folder", ["saved", "runs/both2"])
def test_checkpoints_of_two_methods_never_share_a_folder(write: Write, folder: str) -> None:
    argv = [recipe(write), "run_folder=runs/both", f"save_folder={folder}", "max_duration=1ba"]
    assert compare(*argv) == 0
    assert sorted(path.name for path in Path(folder).iterdir()) == ["aesam", "sgd"]


PLAN = "compare: {methods: [sgd, aesam, sam], seeds: 2}\n"


def test_a_recipe_says_what_is_compared(write: Write, capsys: Capture) -> None:
    assert compare(recipe(write, PLAN), "run_name=all", "max_duration=1ba", "--json") == 0
    found = json.loads(capsys.readouterr().out)["results"]
    order = [("sgd", 1000), ("aesam", 1000), ("sam", 1000), ("sgd", 1001), ("aesam", 1001), ("sam", 1001)]
    assert [(row["method"], row["seed"]) for row in found] == order
    assert found[4]["folder"] == "runs/all/aesam-seed1001"


def test_the_command_line_comes_before_what_a_recipe_says(write: Write, capsys: Capture) -> None:
    path = recipe(write, PLAN)
    assert compare(path, "--methods", "sgd", "--seeds", "1", "seed=7", "max_duration=1ba", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert (row["method"], row["seed"]) == ("sgd", 7)


def test_a_recipe_on_another_takes_over_its_comparison(write: Write, capsys: Capture) -> None:
    recipe(write, PLAN)
    path = str(write("base: recipe.yaml\ncompare: {seeds: 1}\nseed: 3\n", "mine.yaml"))
    assert compare(path, "max_duration=1ba", "--json") == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert [(row["method"], row["seed"]) for row in found] == [("sgd", 3), ("aesam", 3), ("sam", 3)]


LIST = "must be a list of methods, each once, e.g. [sgd, sam]"
WRONG_PLANS = {
    "compare: 3": "compare: not a mapping of keys to values",
    "compare: {method: [sgd]}": "compare: unknown argument 'method'; did you mean 'methods'?",
    "compare: {methods: sgd}": f"compare.methods: {LIST}, got 'sgd'",
    "compare: {methods: []}": f"compare.methods: {LIST}, got []",
    "compare: {methods: [1]}": f"compare.methods: {LIST}, got [1]",
    "compare: {methods: [sgd, sgd]}": f"compare.methods: {LIST}, got ['sgd', 'sgd']",
    "compare: {seeds: 0}": "compare.seeds: must be an integer >= 1, got 0",
    "compare: {seeds: true}": "compare.seeds: must be an integer >= 1, got True",
}


@pytest.mark.parametrize("plan", WRONG_PLANS)
def test_a_wrong_plan_is_refused_by_every_command(write: Write, capsys: Capture, plan: str) -> None:
    path = recipe(write, plan + "\n")
    for command in ("compare", "validate"):
        assert main([command, path]) == 2
        assert capsys.readouterr().err == f"error: {path}: {WRONG_PLANS[plan]}\n"
    assert list(Path.cwd().iterdir()) == []


def test_a_method_that_compare_names_and_nobody_knows_is_refused_by_validate(write: Write, capsys: Capture) -> None:
    path = recipe(write, "compare: {methods: [sgd, samm]}\n")
    for command in ("compare", "validate"):
        assert main([command, path]) == 2
        assert capsys.readouterr().err.startswith("error: method: unknown method 'samm'; did you mean 'sam'")


def test_the_model_is_evaluated_once_after_its_last_step(write: Write, capsys: Capture) -> None:
    argv = [recipe(write), "--methods", "sgd", "max_duration=3ep", "run_name"]
    for name, more, batches in (("once", [], [3]), ("often", ["eval_interval=1ep"], [1, 2, 3])):
        assert compare(*argv[:-1], f"run_name={name}", *more) == 0
        assert "On test data (360 samples)," in capsys.readouterr().out
        lines = read_metrics(Path(f"runs/{name}/sgd/metrics.jsonl"))
        assert [line["batch"] for line in lines if "metrics/eval/MulticlassAccuracy" in line] == batches
    assert compare(*argv[:-1], "train_dataset.evaluate=validation") == 0
    assert "On validation data (360 samples)," in capsys.readouterr().out


def test_several_processes_end_with_an_interrupt_and_find_what_one_finds(write: Write, capsys: Capture) -> None:
    path = recipe(write)
    options = ["--methods", "sam,aesam", "max_duration=40ep", "--json"]
    argv = [path, *options, "run_name=long", "autoresume=true", "--jobs", "2"]
    going = subprocess.Popen(
        [sys.executable, "-m", "sam_algos.command", "compare", *argv, "max_duration=4000ep"], stderr=subprocess.PIPE
    )
    while not list(Path().glob("runs/long/*/checkpoints/*.pt")) and going.poll() is None:
        time.sleep(0.05)
    going.send_signal(signal.SIGINT)
    said = going.communicate(timeout=60)[1].decode()
    assert "interrupted\ngo on with: sam-algos compare " in said
    assert going.returncode == 130
    begun = [folder for folder in Path("runs/long").iterdir() if (folder / "metrics.jsonl").exists()]
    assert begun  # their files are kept
    shutil.rmtree("runs/long")

    assert main(["compare", *argv]) == 0
    captured = capsys.readouterr()
    together = json.loads(captured.out)["results"]
    assert sorted(line[:5] for line in captured.err.splitlines()) == ["[1/2]", "[2/2]"]
    assert compare(path, *options) == 0
    alone = json.loads(capsys.readouterr().out)["results"]
    for one, other in zip(together, alone, strict=True):
        same = ("method", "seed", "value", "gradients", "fraction", "steps")
        assert [one[key] for key in same] == [other[key] for key in same]
        assert weights(one["folder"]) == weights(other["folder"])


def weights(folder: str) -> list[Any]:
    (path,) = Path(folder, "checkpoints").glob("ep*.pt")
    model = torch.load(path, weights_only=False)["state"]["model"]
    return [tensor.tolist() for tensor in model.values()]


def test_an_error_in_one_of_several_processes_is_one_line_and_leaves_nothing(write: Write, capsys: Capture) -> None:
    path = write(TINY + "methods: {bad: {model: {name: vit_s16}}, worse: {model: {name: vit_s16}}}\n", "recipe.yaml")
    assert main(["compare", str(path), "--methods", "bad,worse", "--jobs", "2"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(
        r"(failed: (bad|worse), seed 1000\n)+error: model: vit_s16 does not take 1x8x8 images: .*\n", said
    )
    assert list(Path.cwd().iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(write: Write, capsys: Capture) -> None:
    Path("runs").touch()
    assert main(["compare", recipe(write), "--jobs", "2"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: run_folder: cannot make runs/\S+-compare-\S+: Not a directory\n", said)
    assert Path("runs").is_file()


def result(method: str, seed: int, value: float | None, gradients: float = 1.0, cpu: float | None = 1.0) -> Result:
    found = None if value is None else Headline("accuracy", value, "")
    summary = Summary(1, found, 0.5, gradients, 9.9, cpu and cpu * gradients, 3.0 * gradients, 1.0, None)
    return Result(method, seed, Path(), summary, method.upper(), method == "aesam", "test data (7 samples)")


def results(differences: Sequence[float], gradients: float = 1.0, method: str = "sam") -> list[Result]:
    """SGD and a method with these differences, seed by seed."""
    pairs = [
        (result("sgd", s, 90.0 + s), result(method, s, 90.0 + s + d, gradients)) for s, d in enumerate(differences)
    ]
    return [run for pair in pairs for run in pair]


HALF = 4.302652729911275 / math.sqrt(3)  # of three values one apart; t of 2 degrees of freedom


def test_intervals_are_students_and_differences_are_taken_seed_by_seed() -> None:
    found = standings(results([1.0, 1.0, 1.0]))
    assert found[0]["value"]["mean"] == 91.0
    assert found[0]["value"]["half"] == pytest.approx(HALF)
    assert found[1]["difference"] == {"mean": 1.0, "half": 0.0}
    assert standings(results([0.0, 1.0, 2.0]))[1]["difference"]["half"] == pytest.approx(HALF)


def test_the_table_has_time_where_cpu_time_is_not_known_and_sharp_steps_where_something_decides() -> None:
    assert re.search(r"^method +accuracy % +gradients +CPU$", table(results([1.0])[:1]), re.M)
    runs = [result("sgd", 0, 90.0, cpu=None), result("aesam", 0, 91.0, 1.5, cpu=None)]
    assert table(runs).splitlines()[0].split() == ["method", "accuracy", "%", "vs", "sgd", "gradients", "time", "sharp"]
    assert re.search(r"^aesam +91\.0 +\+1\.0 +1\.50 +1\.50 +50 %$", table(runs), re.M)


NOTHING = "No method is clearly better than SGD; of the others the best: "

CONCLUSIONS = {
    "SAM is 2.0 ± 0.0 points better than SGD for the same number of gradients.": results([2, 2, 2]),
    "SAM is 3.0 ± 2.5 points better than SGD for 2.00 times the gradients.": results([2, 3, 4], 2.0),
    # Not beyond its interval.
    NOTHING + "SAM is 1.0 ± 2.5 points better than SGD for 1.47 times the gradients.": (
        results([0, 1, 2], 1.47)
    ),
    NOTHING + "SAM is 4.0 ± 2.5 points worse than SGD for 2.00 times the gradients.": (
        results([-3, -4, -5], 2.0)
    ),
    "In a single run each, which is mostly noise, SAM is 2.0 points better than SGD for 2.00 times the gradients; "
    "--seeds 5 adds confidence intervals.": results([2], 2.0),
    "SGD was trained alone: there is nothing to compare it with.": [result("sgd", 0, 90.0)],
    "Not every model was evaluated, so nothing can be said.": [result("sgd", 0, None), result("sam", 0, None)],
    # Of two that are clearly better the one with fewer gradients, though the other gains more.
    "MSAM is 2.0 ± 0.0 points better than SGD for the same number of gradients.": [
        *results([3, 3, 3], 2.0), *results([2, 2, 2], 1.0, "msam")[1::2]
    ],
}  # fmt: skip


@pytest.mark.parametrize("said", CONCLUSIONS)
def test_the_last_sentence_says_what_was_seen(said: str) -> None:
    assert conclusion(CONCLUSIONS[said]) == said


def test_a_lower_perplexity_is_better() -> None:
    runs = results([-0.5, -0.5, -0.5])
    for run in runs:
        found = Headline("perplexity", run.value, "")
        object.__setattr__(run, "summary", replace(run.summary, headline=found))
    said = "SAM is 0.500 ± 0.000 in perplexity better than SGD for the same number of gradients."
    assert conclusion(runs) == said


def test_a_run_without_evaluation_has_no_value() -> None:
    runs = [result(method, seed, None) for seed in (0, 1) for method in ("sgd", "sam")]
    assert re.search(r"^sgd +nan", table(runs), re.M)
    json.dumps(standings(runs), allow_nan=False)


def test_the_picture_has_a_point_for_each_method(tmp_path: Path) -> None:
    assert draw(results([1.0, 2.0]), tmp_path / "x.svg").read_text().count("SAM") >= 1
