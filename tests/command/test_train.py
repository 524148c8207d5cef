from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch

from sam_algos import train
from sam_algos.recipes import load_recipe
from tests.command.running import Capture, lines, metrics
from tests.recipes.writing import Write


def test_plain_run_prints_the_table_and_writes_the_files(write: Write, capsys: Capture) -> None:
    path = write()
    assert train.main([str(path), "run_name=first", "max_duration=2ep"]) == 0
    table = lines(capsys.readouterr().out)
    assert re.fullmatch(r"\d+\.\d\d %", table["clean test accuracy"])
    assert (table["SAM fraction"], table["sharp step (median)"]) == ("0.0 %", "-")
    assert re.fullmatch(r"\d+\.\d\d ms", table["plain step (median)"])
    assert (table["log"], table["recipe"]) == ("runs/first/metrics.jsonl", "runs/first/recipe.yaml")
    assert Path(table["checkpoint"]).is_file()
    assert load_recipe(table["recipe"]) == load_recipe(path, ["max_duration=2ep"])  # its name is taken
    batches = [line for line in metrics(table) if "step_seconds" in line]
    assert [line["batch"] for line in batches] == [1, 2]
    accuracies = [line["metrics/eval/MulticlassAccuracy"] for line in metrics(table) if "eval" in str(line)]
    assert f"{100 * accuracies[-1]:.2f} %" == table["clean test accuracy"]


@pytest.mark.filterwarnings("ignore:Some targets have less than 1 total probability")  # rounding in MixUp
@pytest.mark.parametrize(
    ("overrides", "fraction"),
    [
        (["algorithms.sam.rho=0.1"], 1.0),
        (["algorithms.looksam.k=4"], 0.25),
        (["algorithms.sam.interval=2", "algorithms.mixup={}", "algorithms.label_smoothing={}"], 0.5),
        (["algorithms.aesam={}", "algorithms.ema.half_life=2ba"], None),
    ],
)
def test_method_runs(write: Write, capsys: Capture, overrides: list[str], fraction: float | None) -> None:
    assert train.main([str(write()), "global_train_batch_size=250", *overrides]) == 0
    table = lines(capsys.readouterr().out)
    logged = [line for line in metrics(table) if "sam/applied" in line]
    assert len(logged) == 4
    measured = sum(line["sam/applied"] for line in logged) / 4
    assert fraction in (None, measured)
    assert table["SAM fraction"] == f"{100 * measured:.1f} %"
    assert (table["sharp step (median)"] == "-") == (measured == 0)
    assert (table["plain step (median)"] == "-") == (measured == 1)


def test_run_gets_a_name_from_the_recipe(write: Write, capsys: Capture) -> None:
    assert train.main([str(write(name="set/plain.yaml")), "save_folder=null"]) == 0
    (folder,) = Path("runs").iterdir()
    assert re.fullmatch(r"set-plain-\d{8}-\d{6}", folder.name)
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.jsonl", "recipe.yaml"]
    assert lines(capsys.readouterr().out)["checkpoint"] == "-"


def test_same_seed_same_weights(write: Write, capsys: Capture) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train.main([str(write()), f"run_name={name}", f"seed={seed}", "algorithms.sam={}"]) == 0
        checkpoint = lines(capsys.readouterr().out)["checkpoint"]
        weights.append(torch.load(checkpoint, weights_only=False)["state"]["model"])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not all(torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


def test_autoresume_goes_on(write: Write, capsys: Capture) -> None:
    argv = [str(write()), "run_name=long", "autoresume=true"]
    assert train.main([*argv, "max_duration=1ep"]) == 0
    assert train.main([*argv, "max_duration=3ep"]) == 0
    table = lines(capsys.readouterr().out.split("checkpoint", 1)[1].split("\n", 1)[1])
    assert table["checkpoint"].endswith("ep3-ba3-rank0.pt")
    assert [line["batch"] for line in metrics(table) if "step_seconds" in line] == [1, 2, 3]


def test_resolved_recipe_repeats_the_run(write: Write, capsys: Capture) -> None:
    assert train.main([str(write()), "run_name=a", "algorithms.asam={}"]) == 0
    first = lines(capsys.readouterr().out)
    assert train.main([first["recipe"]]) == 0
    second = lines(capsys.readouterr().out)
    losses = [[line.get("loss/train/total") for line in metrics(table)] for table in (first, second)]
    assert losses[0] == losses[1]
    assert any(losses[0])


def test_a_finished_run_started_again_prints_its_table(write: Write, capsys: Capture) -> None:
    argv = [str(write()), "run_name=done", "autoresume=true", "algorithms.sam={}", "max_duration=2ep"]
    tables = []
    for _ in range(2):
        assert train.main(argv) == 0
        tables.append({**lines(capsys.readouterr().out), "wall clock": ""})
    assert tables[0] == tables[1]
    assert Path(tables[1]["checkpoint"]).is_file()


def test_the_table_is_of_the_whole_run(write: Write, capsys: Capture) -> None:
    argv = [str(write()), "run_name=long", "autoresume=true"]
    assert train.main([*argv, "max_duration=1ep", "algorithms.sam={}"]) == 0
    capsys.readouterr()
    assert train.main([*argv, "max_duration=4ep", "algorithms.sam.interval=9"]) == 0
    table = lines(capsys.readouterr().out)
    assert (table["SAM fraction"], table["gradients"]) == ("25.0 %", "5 in 4 steps")


def test_two_runs_of_one_second_have_two_names(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda form: "now")
    for _ in range(3):
        assert train.main([str(write(name="set/plain.yaml")), "save_folder=null"]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == [
        "set-plain-now",
        "set-plain-now-2",
        "set-plain-now-3",
    ]


def test_progress_is_a_line_an_epoch(write: Write, capsys: Capture) -> None:
    argv = [str(write()), "progress_bar=true", "max_duration=2ep", "algorithms.sam={}"]
    assert train.main(argv) == 0
    first, second = capsys.readouterr().err.splitlines()
    pattern = r"epoch %d/2  loss \d\.\d{4}  accuracy +\d+\.\d\d %%  SAM 100\.0 %%  \d+\.\d s"
    assert re.fullmatch(pattern % 1, first) and re.fullmatch(pattern % 2, second)
    assert len(first) <= 80


def test_a_complete_run_is_not_taken_for_another_recipes(write: Write, capsys: Capture) -> None:
    argv = [str(write()), "run_name=done", "autoresume=true"]
    assert train.main(argv) == 0
    written = Path("runs/done/recipe.yaml").read_text()
    capsys.readouterr()
    assert train.main([*argv, "optimizer.lr=0.5", "seed=7", "progress_bar=true"]) == 2
    expected = "error: autoresume: runs/done is complete, and was trained with another optimizer, seed\n"
    assert capsys.readouterr().err == expected
    assert Path("runs/done/recipe.yaml").read_text() == written
    assert train.main([*argv, "max_duration=2ep", "optimizer.lr=0.5"]) == 0  # goes on, with another rate
    assert load_recipe("runs/done/recipe.yaml").optimizer["lr"] == 0.5


def test_the_line_of_a_run_that_ends_within_an_epoch_has_its_accuracy(write: Write, capsys: Capture) -> None:
    argv = [str(write()), "progress_bar=true", "global_train_batch_size=300", "max_duration=5ba"]
    assert train.main(argv) == 0
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"batch 3/5  loss [\d.]+  accuracy +[\d.]+ %  [\d.]+ s", first)
    assert re.fullmatch(r"batch 5/5  loss [\d.]+  accuracy +[\d.]+ %  [\d.]+ s", second)


def test_a_resume_says_where_it_goes_on(write: Write, capsys: Capture) -> None:
    argv = [str(write()), "run_name=on", "autoresume=true", "progress_bar=true"]
    said = []
    for duration in ("1ep", "2ep", "2ep"):
        assert train.main([*argv, f"max_duration={duration}"]) == 0
        said.append(capsys.readouterr().err.splitlines())
    assert [len(lines) for lines in said] == [1, 2, 1]
    assert said[1][0].startswith("going on after batch 1, from ")
    assert said[2] == ["runs/on is complete: nothing was trained"]
    assert train.main(["runs/on/recipe.yaml"]) == 0  # a run of its own
    assert len(list(Path("runs").iterdir())) == 2
