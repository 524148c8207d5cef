from __future__ import annotations

import errno
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer

from sam_algos import train
from sam_algos.recipes import load_recipe
from sam_algos.recipes.records import StepTimes
from tests.recipes.writing import Write

Capture = pytest.CaptureFixture[str]


def lines(text: str) -> dict[str, str]:
    return {line[:20].strip(): line[21:] for line in text.strip().splitlines()}


def metrics(table: dict[str, str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(table["log"]).read_text().splitlines()]


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


WRONG = {
    "max_duraton=1ep": "error: max_duraton=1ep: unknown key 'max_duraton'; did you mean 'max_duration'?",
    "max_duration=soon": "error: max_duration: must be a duration > 0, e.g. 20ep or 4000ba, got 'soon'",
    "max_duration=0ep": "error: max_duration: must be a duration > 0, e.g. 20ep or 4000ba, got '0ep'",
    "eval_interval=often": "error: eval_interval: must be a duration > 0, e.g. 1ep, 100ba or 0.1dur, got 'often'",
    "save_interval=-1ep": "error: save_interval: must be a duration > 0, e.g. 1ep, 100ba or 0.1dur, got '-1ep'",
    "precision=fp33": (
        "error: precision: must be one of 'fp32', 'amp_bf16', 'amp_fp16', 'amp_fp8', or null, got 'fp33'; "
        "did you mean 'fp32'?\n"
    ),
    "precision=amp_fp16": "error: recipe: ",
    "device=gpuu": "error: device: ",
    "device_train_microbatch_size=auto": "error: recipe: ",
    "device_train_microbatch_size=many": "error: ",
    "load_path=nothing.pt": "error: load_path: no such file: nothing.pt",
    "autoresume=true": "error: autoresume: needs a run_name and a save_folder to go on from",
    "model.name=small_cn": "error: model.name: unknown model 'small_cn'; did you mean 'small_cnn'?",
    "model.name=resnet18": "error: model: resnet18 does not take 1x8x8 images",
    "train_dataset.name=digit": "error: train_dataset.name: unknown dataset 'digit'; did you mean 'digits'?",
    "train_dataset.label_noise=2": "error: train_dataset.label_noise: ",
    "optimizer.name=sdg": "error: optimizer.name: unknown optimizer 'sdg'; did you mean 'SGD'?",
    "scheduler.name=cosin": "error: scheduler.name: unknown scheduler 'cosin'; did you mean 'cosine'?",
    "algorithms.aesm.rho=1": "error: algorithms.aesm: unknown algorithm 'aesm'; did you mean 'aesam'?",
    "algorithms.aesam.rho=0": "error: algorithms.aesam.rho: ",
    "algorithms.aesam.rho=-0.1": "error: algorithms.aesam.rho: ",
    "algorithms.aesam.rho=big": "error: algorithms.aesam.rho: ",
    "algorithms.aesam.rh=1": "error: algorithms.aesam: unknown argument 'rh'; did you mean 'rho'?",
    "algorithms={sam: {}, asam: {}}": "error: algorithms: sam and asam cannot be combined",
    "algorithms.stochastic_depth.target_layer_name=Nothing": "error: ",
    "callbacks.lr_monitr={}": "error: callbacks.lr_monitr: unknown callback 'lr_monitr'",
    "loggers.wanbd={}": "error: loggers.wanbd: unknown logger 'wanbd'; did you mean 'WandBLogger'?",
    "global_train_batch_size=1078": "error: global_train_batch_size: 1078 is more than the 1077",
    "global_train_batch_size=many": "error: global_train_batch_size: ",
    "dataloader.num_worker=2": "error: dataloader: unknown argument 'num_worker'; did you mean",
    "dataloader.num_workers=-1": "error: dataloader: ",
    "run_folder=runs/{nme}": "error: run_folder: cannot fill in 'runs/{nme}'",
    "run_folder=runs/{run_name": "error: run_folder: cannot fill in 'runs/{run_name'",
    "run_folder=/dev/null/x": "error: run_folder: ",
    "seed=-1": "error: seed: must be an integer in [0, 2**32), got -1",
    "eval_dataset={name: cifar10, path: nowhere}": "error: eval_dataset.path: no folder 'nowhere'",
    "train_dataset={name: digits, evaluate: validation} eval_dataset={name: digits}": (
        "error: train_dataset.evaluate: must be left out where eval_dataset says what to evaluate on"
    ),
    "train_dataset.split_seed=-1": "error: train_dataset.split_seed: ",
    "seed=1e3": "error: seed: must be an integer in [0, 2**32), got 1000.0; write 1000",
    "optimizer.lr=abc": "error: optimizer.lr: must be a number, got 'abc'",
    "optimizer.momentum=.nan": "error: optimizer.momentum: must be a number, got nan",
    "optimizer.lr=.inf": "error: optimizer.lr: must be finite, got inf",
    "dist_timeout=-5": "error: dist_timeout: must be a finite number > 0, got -5",
    "algorithms=aesam": (
        "error: algorithms: must map each algorithm's name to its arguments, got 'aesam'; write algorithms.aesam={}"
    ),
    "algorithms=[aesam]": "error: algorithms: must map each algorithm's name to its arguments, got ['aesam']",
    "algorithms.aesam=0.1": "error: algorithms.aesam: 0.1 is not a mapping of arguments; write algorithms.aesam={}",
    "algorithms.aesam.name=foo": "error: algorithms.aesam: unknown argument 'name'",
    "callbacks.early_stopper={monitor: x, dataloader_label: evil}": (
        "error: callbacks.early_stopper.dataloader_label: unknown label 'evil'; did you mean 'eval'?"
    ),
    "method=aesm": "error: method: unknown method 'aesm'; did you mean 'aesam'?",
    "no_equals": "error: no_equals: not an override: write key=value",
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_input_is_one_line_and_leaves_nothing(write: Write, capsys: Capture, override: str) -> None:
    overrides = re.split(r" (?=\w+_dataset)", override)
    refused([str(write()), *overrides], capsys, WRONG[override])


def refused(argv: list[str], capsys: Capture, message: str) -> None:
    assert train.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert captured.err.count("\n") == 1
    assert list(Path.cwd().iterdir()) == []


def test_missing_and_malformed_recipes(write: Write, capsys: Capture) -> None:
    refused(["none.yaml"], capsys, "error: none.yaml: no such recipe; those that come with the package: cifar10/")
    path = write("model: [1\n")
    refused([str(path)], capsys, f"error: {path}: not YAML: line 2: ")


def test_an_existing_run_is_not_overwritten(write: Write, capsys: Capture) -> None:
    kept = Path("runs/mine/notes.txt")
    kept.parent.mkdir(parents=True)
    kept.write_text("keep")
    assert train.main([str(write()), "run_name=mine"]) == 2
    assert capsys.readouterr().err.startswith("error: run_name: runs/mine exists; take another name")
    assert train.main([str(write()), "run_name=new", "precision=amp_fp16"]) == 2
    assert [path for path in Path("runs").rglob("*") if path.is_file()] == [kept]
    assert not Path("runs/new").exists()


def test_only_one_process_speaks(write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    assert train.main([str(write()), "max_duraton=1ep"]) == 2
    assert capsys.readouterr().err == ""
    assert waited == [3]


def test_traceback_is_there_for_those_who_ask(write: Write) -> None:
    with pytest.raises(ValueError, match="aesam"):
        train.main(["--traceback", str(write()), "algorithms.aesam.rho=0"])


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (SystemExit(130), 130), (SystemExit(143), 143)])
def test_interrupt_says_where_the_files_are(
    write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch, stop: BaseException, code: int
) -> None:
    def fit(self: Trainer) -> None:
        raise stop

    monkeypatch.setattr(Trainer, "fit", fit)
    assert train.main([str(write()), "run_name=short"]) == code
    assert capsys.readouterr().err == "interrupted; no step was taken, and no file is left\n"
    assert list(Path.cwd().iterdir()) == []


def _fails(error: BaseException) -> Callable[..., None]:
    def fit(*args: object, **kwargs: object) -> None:
        raise error

    return fit


def test_interrupt_after_a_step_says_where_the_files_are(
    write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StepTimes, "batch_end", _fails(KeyboardInterrupt()))
    assert train.main([str(write()), "run_name=short"]) == 130
    assert capsys.readouterr().err == "interrupted; checkpoint: -, log: runs/short/metrics.jsonl\n"
    assert Path("runs/short/metrics.jsonl").is_file()


def test_an_interrupt_while_the_trainer_is_made_leaves_nothing(
    write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sam_algos.recipes.run.Trainer", _fails(KeyboardInterrupt()))
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
    monkeypatch.setattr(StepTimes, "batch_end", _fails(error))
    assert train.main([str(write()), "run_name=short"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.endswith("; checkpoint: -, log: runs/short/metrics.jsonl\n")


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
    monkeypatch.setattr(StepTimes, "batch_end", _fails(RuntimeError("diverged")))
    assert train.main([*argv, "run_name=stopped"]) == 1
    assert re.search(r"\r +\rerror: RuntimeError: diverged [^\r]+\n$", terminal.getvalue())


@pytest.mark.parametrize("text", ["not a checkpoint", ""])
def test_a_checkpoint_that_is_none(write: Write, capsys: Capture, tmp_path: Path, text: str) -> None:
    (tmp_path / "some.pt").write_text(text)
    refused([str(write()), "load_path=../some.pt"], capsys, "error: load_path: ../some.pt is no checkpoint: ")


def test_other_exits_of_training_pass(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "fit", _fails(SystemExit(1)))
    with pytest.raises(SystemExit):
        train.main([str(write())])


def test_training_that_fails_is_one_line(write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "fit", _fails(RuntimeError("diverged\nhere")))
    assert train.main([str(write()), "run_name=short"]) == 1
    assert capsys.readouterr().err == (
        "error: RuntimeError: diverged (--traceback shows where); no step was taken, and no file is left\n"
    )
    with pytest.raises(RuntimeError, match="diverged"):
        train.main([str(write()), "run_name=long", "--traceback"])


def test_interrupt_while_preparing(write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sam_algos.recipes.load_recipe", load)
    assert train.main([str(write())]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_help_and_errors_need_neither_torch_nor_composer() -> None:
    code = (
        "import sys; from sam_algos.train import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert main(['none.yaml']) == 2\n"
        "assert main(['digits', 'algorithms.aesam.rho=0']) == 2\n"
        "assert not {'torch', 'composer', 'torchvision'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "algorithms.aesam.rho=0.1" in done.stdout
    assert "global_train_batch_size (int)" in done.stdout
    first, second = done.stderr.splitlines()
    assert first.startswith("error: none.yaml: no such recipe; ")
    assert second.startswith("error: algorithms.aesam.rho: must be a finite number > 0, or a schedule")


def test_recipe_is_required(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        train.main([])
    assert end.value.code == 2
    assert "the following arguments are required: recipe" in capsys.readouterr().err
