from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from composer import Trainer

from sam_algos.command import main
from sam_algos.recipes.comparison import Result, table
from sam_algos.recipes.records import Headline, Summary
from tests.recipes.writing import Write

Capture = pytest.CaptureFixture[str]

ROWS = "methods: {sgd: {optimizer: {lr: 0.2}}, aesam: {max_duration: 2ep, algorithms: {aesam: {rho: 0.1}}}}\n"


def recipe(write: Write) -> str:
    from tests.recipes.writing import TINY

    return str(write(TINY + ROWS))


def test_two_methods_side_by_side(write: Write, capsys: Capture) -> None:
    assert main(["compare", recipe(write), "run_name=both", "global_train_batch_size=360", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    sgd, aesam = found["results"]
    assert (sgd["method"], sgd["fraction"], sgd["gradients"], sgd["folder"]) == ("sgd", 0.0, 2, "runs/both/sgd")
    assert (aesam["method"], aesam["folder"]) == ("aesam", "runs/both/aesam")
    assert aesam["gradients"] == pytest.approx(4 * (1 + aesam["fraction"]))
    assert Path(found["picture"]).read_bytes().startswith(b"\x89PNG")
    assert Path("runs/both/aesam/checkpoints").is_dir()


def test_an_interrupted_comparison_goes_on(write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["compare", recipe(write), "--methods", "sgd,asam", "--seeds", "2", "run_name=long", "autoresume=true"]
    fit, fitted = Trainer.fit, []

    def until(count: int) -> Any:
        def counted(self: Trainer) -> None:
            if len(fitted) == count:
                raise KeyboardInterrupt
            fitted.append(self)
            fit(self)

        return counted

    monkeypatch.setattr(Trainer, "fit", until(3))
    assert main(argv) == 130
    monkeypatch.setattr(Trainer, "fit", until(4))
    capsys.readouterr()
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert len(fitted) == 4
    assert captured.err.splitlines()[0] == "[1/4] sgd, seed 0"
    assert re.search(r"^method +accuracy % +to sgd +SAM +steps +gradients +time\n", captured.out, re.M)
    assert re.search(r"^asam +\d+\.\d\d ± \d+\.\d\d +[-+]\d+\.\d\d ± \d+\.\d\d +100\.0 % +1 +2 ", captured.out, re.M)


def test_everything_is_checked_before_anything_is_trained(write: Write, capsys: Capture) -> None:
    for methods, message in {
        "sgd,aesm": "error: method: unknown method 'aesm'; did you",
        ",": "error: --methods:",
    }.items():
        assert main(["compare", recipe(write), "--methods", methods]) == 2
        assert capsys.readouterr().err.startswith(message)
        assert list(Path.cwd().iterdir()) == []
    with pytest.raises(SystemExit) as end:
        main(["compare", recipe(write), "--seeds", "0"])
    assert end.value.code == 2
    assert "must be an integer >= 1, got '0'" in capsys.readouterr().err


def test_plain_training_is_plain_whatever_the_file_trains_with(write: Write, capsys: Capture) -> None:
    from tests.recipes.writing import TINY

    path = str(write(TINY + "algorithms: {sam: {rho: 0.1}}\n"))
    assert main(["compare", path, "optimizer.name=adam", "--json", "max_duration=1ba"]) == 0
    adam, aesam = json.loads(capsys.readouterr().out)["results"]
    assert (adam["method"], adam["fraction"], adam["gradients"]) == ("adam", 0.0, 1)
    assert (aesam["method"], aesam["gradients"] >= 1) == ("aesam", True)


WRONG = {
    "method=sam": "error: --methods: says what is compared: write --methods sgd,sam\n",
    "bootstrap=1": "error: bootstrap: sgd trains several times; compare trains each method once\n",
}


@pytest.mark.parametrize("override", WRONG)
def test_what_cannot_be_compared(write: Write, capsys: Capture, override: str) -> None:
    assert main(["compare", recipe(write), override]) == 2
    assert capsys.readouterr().err == WRONG[override]
    assert main(["compare", "digits/sam"]) == 2
    assert capsys.readouterr().err == WRONG["method=sam"]


def test_two_comparisons_never_share_a_folder(write: Write, capsys: Capture) -> None:
    argv = ["compare", recipe(write), "run_name=both", "max_duration=1ba", "--methods"]
    assert main([*argv, "sgd"]) == 0
    picture = Path("runs/both/compare.png").stat().st_mtime_ns
    capsys.readouterr()
    assert main([*argv, "asam"]) == 2
    assert capsys.readouterr().err.startswith("error: run_name: runs/both exists; take another name")
    assert Path("runs/both/compare.png").stat().st_mtime_ns == picture


@pytest.mark.parametrize("folder", ["saved", "runs/both2"])
def test_checkpoints_of_two_methods_never_share_a_folder(write: Write, folder: str) -> None:
    argv = ["compare", recipe(write), "run_folder=runs/both", f"save_folder={folder}", "max_duration=1ba"]
    assert main(argv) == 0
    assert sorted(path.name for path in Path(folder).iterdir()) == ["aesam", "sgd"]


def result(method: str, seed: int, value: float | None, gradients: float = 1.0) -> Result:
    found = None if value is None else Headline("accuracy", value, "")
    return Result(method, seed, Path(), Summary(1, found, 0.5, gradients, 9.9, 2.0 * gradients, 1.0, None))


def test_intervals_are_students_and_differences_are_taken_seed_by_seed() -> None:
    rows = table([result(m, s, v) for s in range(3) for m, v in (("sgd", 90.0 + s), ("sam", 91.0 + s))]).splitlines()
    half = 4.302652729911275 / math.sqrt(3)  # of three values one apart; t of 2 degrees of freedom
    assert f"91.00 ± {half:.2f}" in rows[1] and f"92.00 ± {half:.2f}" in rows[2]
    assert "+1.00 ± 0.00" in rows[2]


def test_one_training_each_gives_no_interval() -> None:
    text = table([result("sgd", 0, 90.0), result("sam", 0, 91.0, gradients=2.0)])
    assert "±" not in text and "--seeds 5" in text
    assert "x 2.00" in text


def test_a_run_without_evaluation_has_no_value() -> None:
    assert re.search(r"^sgd +nan", table([result("sgd", 0, None)]), re.M)
