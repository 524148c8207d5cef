"""How a training ends that does not end well, and what it says meanwhile."""

from __future__ import annotations

import errno
import io
import json
import re
import shlex
from pathlib import Path

import pytest
from composer import State, Trainer

from sam_algos import train
from sam_algos.command import main
from sam_algos.recipes.results import read_metrics
from sam_algos.recipes.run.records import StepTimes
from tests.command.running import Capture, fails
from tests.recipes.writing import Write


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (SystemExit(130), 130), (SystemExit(143), 143)])
def test_interrupt_says_where_the_files_are(
    write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch, stop: BaseException, code: int
) -> None:
    def fit(self: Trainer) -> None:
        raise stop

    monkeypatch.setattr(Trainer, "fit", fit)
    assert train.main([str(write()), "run_name=short"]) == code
    assert capsys.readouterr().err == "interrupted; no training step ran, and nothing was saved\n"
    assert list(Path.cwd().iterdir()) == []


def test_interrupt_after_a_step_says_where_the_files_are(
    write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepTimes, "batch_end", fails(KeyboardInterrupt()))
    assert train.main([str(write()), "run_name=short"]) == 130
    assert capsys.readouterr().err == "interrupted; checkpoint: -, log: runs/short/metrics.jsonl\n"
    assert Path("runs/short/metrics.jsonl").is_file()


@pytest.fixture
def interrupted_after_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step of the second epoch is interrupted, once."""
    stopped = []

    def epoch_start(self: StepTimes, state: State, logger: object) -> None:
        if state.timestamp.epoch == 1 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt

    monkeypatch.setattr(StepTimes, "epoch_start", epoch_start, raising=False)


@pytest.mark.usefixtures("interrupted_after_an_epoch")
@pytest.mark.parametrize(
    "overrides",
    [["seed=3"], ["run_name=mine", "save_folder=saved here/{run_name}"], ["run_name=mine", "autoresume=true"]],
)
def test_an_interrupt_prints_the_command_that_goes_on(write: Write, capsys: Capture, overrides: list[str]) -> None:
    assert main(["train", str(write()), "max_duration=2ep", "progress_bar=true", *overrides]) == 130
    *_, stopped, advice = capsys.readouterr().err.splitlines()
    assert stopped.startswith("interrupted; checkpoint: ") and "ep1-ba1-rank0.pt" in stopped
    words = shlex.split(advice.removeprefix("go on with: "))
    assert words[:2] == ["sam-algos", "train"] and set(overrides) <= set(words)
    assert sum(word.startswith("run_name=") for word in words) == words.count("autoresume=true") == 1
    assert main(words[1:]) == 0
    assert capsys.readouterr().err.startswith("going on after batch 1, from ")


@pytest.mark.usefixtures("interrupted_after_an_epoch")
def test_a_run_that_saved_nothing_has_no_command_that_goes_on(write: Write, capsys: Capture) -> None:
    assert main(["train", str(write()), "max_duration=2ep", "save_folder=null"]) == 130
    assert re.fullmatch(r"interrupted; checkpoint: -, log: runs/\S+\n", capsys.readouterr().err)


def test_an_interrupted_comparison_goes_on_from_the_methods_that_are_done(
    write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, fitted = Trainer.fit, []

    def second(self: Trainer) -> None:
        fitted.append(self)
        if len(fitted) == 2:
            raise KeyboardInterrupt
        fit(self)

    monkeypatch.setattr(Trainer, "fit", second)
    assert main(["compare", str(write()), "--methods", "sgd,sam", "--jobs", "1"]) == 130
    advice = capsys.readouterr().err.splitlines()[-1]
    assert re.search(
        r"go on with: sam-algos compare \S+ --methods sgd,sam --jobs 1 run_name=\S+ autoresume=true$", advice
    )
    assert main(shlex.split(advice.removeprefix("go on with: "))[1:]) == 0
    assert len(fitted) == 3


@pytest.mark.parametrize(
    ("on_this_machine", "advice"),
    [
        ("2", "composer -n 2 -m sam_algos.command train RECIPE max_duration=2ep run_name=a autoresume=true"),
        ("1", "the same command and run_name=a autoresume=true"),
    ],
)
def test_several_processes_go_on_with_their_launcher(
    write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch, on_this_machine: str, advice: str
) -> None:
    def stop(self: StepTimes, state: State, logger: object) -> None:
        if state.timestamp.epoch == 1:
            monkeypatch.setenv("WORLD_SIZE", "2")
            monkeypatch.setenv("LOCAL_WORLD_SIZE", on_this_machine)
            raise KeyboardInterrupt

    monkeypatch.setattr(StepTimes, "epoch_start", stop, raising=False)
    path = str(write())
    assert main(["train", path, "max_duration=2ep", "run_name=a"]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(f"go on with:? {re.escape(advice.replace('RECIPE', path))}", last)


def test_an_interrupt_while_the_trainer_is_made_leaves_nothing(
    write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam_algos.recipes.run.Trainer", fails(KeyboardInterrupt()))
    assert train.main([str(write())]) == 130
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "x.jsonl"),
            "error: no space is left on the disk for x.jsonl",
        ),
        (
            RuntimeError("PytorchStreamWriter failed writing file data/0"),
            "error: a checkpoint could not be written; is",
        ),
    ],
)
def test_a_full_disk_is_named(
    write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    monkeypatch.setattr(StepTimes, "batch_end", fails(error))
    assert train.main([str(write()), "run_name=short"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.endswith("; checkpoint: -, log: runs/short/metrics.jsonl\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_is_drawn_on_a_terminal_and_taken_away(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    argv = [str(write()), "progress_bar=true", "global_train_batch_size=360"]
    assert train.main([*argv, "run_name=whole"]) == 0
    assert "epoch 1/1:" in terminal.getvalue() and "step/s" in terminal.getvalue()
    assert re.search(r"\r +\repoch 1/1  loss [^\r]+ s\n$", terminal.getvalue())  # the line stands alone
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setattr(StepTimes, "batch_end", fails(RuntimeError("diverged")))
    assert train.main([*argv, "run_name=stopped"]) == 1
    assert re.search(r"\r +\rerror: RuntimeError: diverged [^\r]+\n$", terminal.getvalue())


def test_other_exits_of_training_pass(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "fit", fails(SystemExit(1)))
    with pytest.raises(SystemExit):
        train.main([str(write())])


def test_training_that_fails_is_one_line(write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "fit", fails(RuntimeError("diverged\nhere")))
    assert train.main([str(write()), "run_name=short"]) == 1
    assert capsys.readouterr().err == (
        "error: RuntimeError: diverged (--traceback shows where); no training step ran, and nothing was saved\n"
    )
    with pytest.raises(RuntimeError, match="diverged"):
        train.main([str(write()), "run_name=long", "--traceback"])


def test_interrupt_while_preparing(write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sam_algos.recipes.load_recipe", load)
    assert train.main([str(write())]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_of_the_progress_that_has_gone_stops_nothing(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("sys.stderr", Closed())
    assert train.main([str(write()), "progress_bar=true", "max_duration=3ep", "run_name=on"]) == 0
    assert len([line for line in read_metrics(Path("runs/on/metrics.jsonl")) if "step_seconds" in line]) == 3


def test_another_library_that_is_missing_is_one_line(
    write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "fit", fails(ModuleNotFoundError("No module named 'wandb'", name="wandb")))
    assert train.main([str(write())]) == 1
    message = "error: ModuleNotFoundError: No module named 'wandb' (--traceback shows where); no training step ran"
    assert capsys.readouterr().err.startswith(message)


def test_an_algorithm_that_is_not_made_for_the_data_is_named(write: Write, capsys: Capture) -> None:
    text = {"name": "hf_causal_lm", "config": {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8}}
    overrides = [f"model={json.dumps(text)}", "train_dataset={name: python_docs, block_size: 16}"]
    argv = [str(write()), *overrides, "global_train_batch_size=8", "max_duration=1ba", "algorithms.mixup.alpha=0.2"]
    assert train.main(argv) == 2
    message = "error: algorithms.mixup: does not work with this model and data: "
    assert capsys.readouterr().err.startswith(message)
    assert list(Path.cwd().iterdir()) == []
