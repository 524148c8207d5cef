"""What is wrong with a recipe or an argument: one line, and nothing is left."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sam_algos import train
from sam_algos.command import main
from tests.command.running import Capture, refused
from tests.recipes.writing import Write

WRONG = {
    "max_duraton=1ep": "error: max_duraton=1ep: unknown key 'max_duraton'; did you mean 'max_duration'?",
    "max_duration=soon": "error: max_duration: must be a duration > 0, e.g. 20ep or 4000ba, got 'soon'",
    "max_duration=0ep": "error: max_duration: must be a duration > 0, e.g. 20ep or 4000ba, got '0ep'",
    "eval_interval=often": "error: eval_interval: must be a duration > 0, e.g. 1ep, 100ba or 0.1dur, got 'often'",
    "save_interval=-1ep": "error: save_interval: must be a duration > 0, e.g. 1ep, 100ba or 0.1dur, got '-1ep'",
    "precision=fp33": (
        "error: precision: must be one of 'fp32', 'amp_bf16', 'amp_fp16', 'amp_fp8', 'amp_bf16_or_fp32', "
        "or null, got 'fp33'; did you mean 'fp32'?\n"
    ),
    "precision=amp_fp16": "error: recipe: ",
    "device=gpuu": "error: device: ",
    "device=cuda": (
        "error: device: must be one of 'cpu', 'gpu', 'mps', 'tpu', 'hpu', or null, got 'cuda'; did you mean 'gpu'?\n"
    ),
    "device=cuda:1": "error: device: must be one of 'cpu', 'gpu'",
    "precision=bf16": "error: precision: must be one of 'fp32', 'amp_bf16', 'amp_fp16', 'amp_fp8', 'amp_bf16_or_fp32'",
    "device=mps": "error: device: there is no mps here (",
    "rho=0.1": "error: rho=0.1: unknown key 'rho'; valid: ",
    "lr=0.2": "error: lr=0.2: unknown key 'lr'; did you mean optimizer.lr=0.2?\n",
    "label_noise=0.2": "error: label_noise=0.2: unknown key 'label_noise'; did you mean train_dataset.label_noise=0.2?",
    "width=3": "error: width=3: unknown key 'width'; did you mean model.width=3?",
    "num_workers=2": "error: num_workers=2: unknown key 'num_workers'; did you mean dataloader.num_workers=2?",
    "sam.rho=0.1": "error: sam.rho=0.1: unknown key 'sam'; did you mean algorithms.sam.rho=0.1?",
    "lr_monitor={}": "error: lr_monitor={}: unknown key 'lr_monitor'; did you mean callbacks.lr_monitor={}?",
    "epochs=3": "error: epochs=3: unknown key 'epochs'; did you mean max_duration=3ep?",
    "maxDuration=3ep": "error: maxDuration=3ep: unknown key 'maxDuration'; did you mean max_duration=3ep?",
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
    "run_folder=.": "error: run_folder: . exists; take another name",
    "run_name=" + 300 * "x": "error: run_folder: cannot make runs/xxx",
    "no_equals": "error: no_equals: not an override: write key=value",
}


METHODS_OWN = {
    ("digits", "rho=0.1"): "algorithms.aesam.rho=0.1",
    ("digits/sam", "rho=0.1"): "algorithms.sam.rho=0.1",
    ("digits", "method=looksam", "rho=0.1"): "algorithms.looksam.rho=0.1",
    ("digits", "k=3", "method=looksam"): "algorithms.looksam.k=3",
    ("digits", "smoothing=0.1"): "algorithms.label_smoothing.smoothing=0.1",
    ("digits", "optimizer.name=adamw", "betas=[0.9, 0.99]"): "optimizer.betas=[0.9, 0.99]",
    ("recipe.yaml", "rho=0.1"): "algorithms.wsam.rho=0.1",
}


@pytest.mark.parametrize("argv", METHODS_OWN)
def test_an_argument_without_its_section_is_found_in_what_is_trained(
    write: Write, capsys: Capture, argv: tuple[str, ...]
) -> None:
    write("base: digits\nmethod: null\nalgorithms: {wsam: {}}\n", name="work/recipe.yaml")
    assert train.main(list(argv)) == 2
    assert capsys.readouterr().err.endswith(f"; did you mean {METHODS_OWN[argv]}?\n")


FILES = {
    "base: digits\nrho: 0.1\n": "unknown key 'rho'; did you mean algorithms.aesam.rho=0.1?",
    "base: digits\nmethod: sam\nrho: 0.1\n": "unknown key 'rho'; did you mean algorithms.sam.rho=0.1?",
    "base: digits\nmethods: {asam: {rho: 0.1}}\n": "methods.asam: unknown key 'rho'; did you mean algorithms.asam.rho",
    "base: digits\nepochs: 3\n": "unknown key 'epochs'; did you mean max_duration=3ep?",
}


@pytest.mark.parametrize("text", FILES)
def test_a_key_of_a_file_is_found_too(write: Write, capsys: Capture, text: str) -> None:
    refused([str(path := write(text))], capsys, f"error: {path}: {FILES[text]}")


OPTIONS = {
    "train digits --epochs 3": "--epochs: no such option; write max_duration=3ep",
    "train --epochs=3 digits": "--epochs: no such option; write max_duration=3ep",
    "train --num_epochs 3 digits": "--num_epochs: no such option; write max_duration=3ep",
    "validate digits seed=1 --max-steps 50": "--max-steps: no such option; write max_duration=50ba",
    "show digits --batch-size 64": "--batch-size: no such option; write global_train_batch_size=64",
    "train digits/sam --rho 0.1": "--rho: no such option; write algorithms.sam.rho=0.1",
    "train digits --lr=0.1 --epochs 3": "--lr: no such option; write optimizer.lr=0.1",
    "compare digits --seed 3": "--seed: no such option; write seed=3",
    "compare digits --sedes 3": "--sedes: no such option; did you mean '--seeds'?",
    "train digits --fancy": "--fancy: no such option; keys of a recipe are written key=value, e.g. max_duration=20ep",
    "train nowhere --epochs 3": "--epochs: no such option; keys of a recipe are written key=value",
}


@pytest.mark.parametrize("line", OPTIONS)
def test_an_option_is_answered_with_the_override(write: Write, capsys: Capture, line: str) -> None:
    assert main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {OPTIONS[line]}") and captured.err.count("\n") == 1
    assert captured.out == "" and list(Path.cwd().iterdir()) == []


def test_a_command_without_a_recipe_names_the_option(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["list", "methods", "--epochs", "3"])
    assert "unrecognized arguments: --epochs 3" in capsys.readouterr().err


@pytest.mark.parametrize("override", WRONG)
def test_wrong_input_is_one_line_and_leaves_nothing(write: Write, capsys: Capture, override: str) -> None:
    overrides = re.split(r" (?=\w+_dataset)", override)
    refused([str(write()), *overrides], capsys, WRONG[override])


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


@pytest.mark.parametrize("text", ["not a checkpoint", ""])
def test_a_checkpoint_that_is_none(write: Write, capsys: Capture, tmp_path: Path, text: str) -> None:
    (tmp_path / "some.pt").write_text(text)
    refused([str(write()), "load_path=../some.pt"], capsys, "error: load_path: ../some.pt is no checkpoint: ")


def test_only_one_process_speaks(write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    assert train.main([str(write()), "max_duraton=1ep"]) == 2
    assert capsys.readouterr().err == ""
    assert waited == [3]


def test_traceback_is_there_for_those_who_ask(write: Write) -> None:
    with pytest.raises(ValueError, match="aesam"):
        train.main(["--traceback", str(write()), "algorithms.aesam.rho=-1"])


def test_help_and_errors_need_neither_torch_nor_composer() -> None:
    code = (
        "import sys; from sam_algos.train import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert main(['none.yaml']) == 2\n"
        "assert main(['digits', 'algorithms.aesam.rho=-1']) == 2\n"
        "assert not {'torch', 'composer', 'torchvision'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "algorithms.aesam.rho=0.1" in done.stdout
    assert "global_train_batch_size (int)" in done.stdout
    first, second = done.stderr.splitlines()
    assert first.startswith("error: none.yaml: no such recipe; ")
    assert second.startswith("error: algorithms.aesam.rho: must be a finite number >= 0, or a schedule")


def test_recipe_is_required(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        train.main([])
    assert end.value.code == 2
    assert "the following arguments are required: recipe" in capsys.readouterr().err


def test_a_checkpoint_that_is_trained_already(write: Write, capsys: Capture, tmp_path: Path) -> None:
    assert train.main([str(write()), "run_folder=../first", "max_duration=2ba"]) == 0
    (checkpoint,) = (tmp_path / "first").glob("checkpoints/*ba2*")
    capsys.readouterr()
    message = "error: max_duration: must be longer than the 2 batches that ../"
    refused([str(write()), f"load_path=../{checkpoint.relative_to(tmp_path)}", "max_duration=2ba"], capsys, message)


def test_another_runs_files_survive_a_folder_that_cannot_be_made(
    write: Write, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mkdir(self: Path, **options: object) -> None:
        os.makedirs("runs/other")
        Path("runs/other/weights.pt").touch()
        raise PermissionError(13, "Permission denied")

    path = str(write())
    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert train.main([path, "run_name=mine"]) == 2
    assert capsys.readouterr().err == "error: run_folder: cannot make runs/mine: Permission denied\n"
    assert Path("runs/other/weights.pt").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["explain", "sam"],
        ["explain", "digits"],
        ["explain", "--json", "adamw"],
        ["list", "methods"],
        ["train", "--help"],
    ],
)
def test_what_reads_no_recipe_needs_no_yaml(argv: list[str]) -> None:
    code = (
        "import sys; sys.modules |= {'yaml': None, 'omegaconf': None, 'torch': None, 'composer': None}\n"
        f"from sam_algos.command import main; sys.exit(main({argv!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout


@pytest.mark.parametrize("missing", ["yaml", "omegaconf", "composer"])
def test_what_is_not_installed_is_named(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from sam_algos.command import main; sys.exit(main(['train', 'digits', 'max_duration=1ba']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"error: {missing}[.\w]* is not installed: pip install 'sam_algos\[recipes\]'\n", done.stderr)
