"""The catalogue agrees with the libraries, and says what is wrong before they are imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sam_algos.recipes import RecipeError, check_names, load_recipe
from sam_algos.recipes.data.datasets import DATASETS
from sam_algos.recipes.naming import catalogue as module
from sam_algos.recipes.naming.arguments import Argument, Form, check, describe
from sam_algos.recipes.naming.catalogue import catalogue
from sam_algos.recipes.naming.components import everything
from tests.recipes.writing import Write

OURS = ["method", "policy", "perturbation", "descent", "samples", "schedule"]


@pytest.mark.parametrize("group", OURS)
def test_every_option_of_ours_has_a_range_that_needs_no_import(group: str) -> None:
    for name, form in catalogue().groups[group].items():
        for option, argument in form.arguments.items():
            for schema in argument.options:
                known = schema.keys() & {"enum", "$ref"} or schema.get("type") in ("boolean", "integer", "null")
                assert known or "description" in schema, f"{name}.{option}: {schema}"


@pytest.mark.parametrize("group", OURS)
def test_what_is_read_from_the_cache_is_what_the_class_says(group: str) -> None:
    for name, factory in everything()[group].items():
        assert catalogue().groups[group][name].arguments == describe(factory).arguments, name


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tables that are made from now on, none of which is in this process yet."""
    names: list[str] = []
    table = {"method": {}, "algorithm": {"x": {"arguments": {}, "takes_others": False, "doc": "", "samples": None}}}
    monkeypatch.setattr(module, "_made", lambda: names.append("made") or table)
    return names


def found() -> list[str]:
    """The algorithms, asked as another process would."""
    return list(catalogue.__wrapped__().groups["algorithm"])


def test_it_is_made_once_for_what_is_installed(
    made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert (found(), found(), made) == (["x"], ["x"], ["made"])
    versions = {"torch": "9.9.0"}
    monkeypatch.setattr(module, "_version", lambda name: versions.get(name))
    assert (found(), found(), made) == (["x"], ["x"], 2 * ["made"])
    versions["torch"] = "9.9.1"
    assert (found(), made) == (["x"], 3 * ["made"])


def test_another_method_makes_another(made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "sam_algos"
    (package / "methods").mkdir(parents=True)
    monkeypatch.setattr(module, "_PACKAGE", package)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found()
    (package / "methods" / "newsam.py").write_text("class NewSAM: ...")
    assert (found(), found(), made) == (["x"], ["x"], 2 * ["made"])


def test_a_cache_that_cannot_be_written_is_no_error(
    made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert (found(), found(), made) == (["x"], ["x"], 2 * ["made"])


def test_the_first_command_says_in_one_line_that_it_lists_the_names(tmp_path: Path) -> None:
    code = "import sys; from sam_algos.command import main; sys.exit(main(['validate', 'digits']))"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    first, second = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment) for _ in range(2)
    )
    assert (first.stdout, second.stdout, second.stderr) == ("valid: digits\n", "valid: digits\n", "")
    assert first.stderr.startswith("listing what recipes can name") and first.stderr.count("\n") == 1


def test_without_composer_it_is_one_line(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['composer'] = None\n"
        "from sam_algos.command import main; sys.exit(main(['validate', 'digits']))"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    expected = "error: composer is not installed: pip install 'sam_algos[recipes]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


class Open:
    def __init__(self, rate: float, kind: str = "a", rest: Any = None) -> None: ...


def test_a_form_says_what_is_wrong() -> None:
    form = describe(Open, hidden=("rest",))
    expected = {"rate": Argument([{"type": "number"}], None), "kind": Argument([{"type": "string"}], "'a'")}
    assert form == Form(expected, False, "")
    for arguments, problem in (
        ({}, "x.rate: required"),
        ({"rate": "1"}, "x.rate: must be a number, got '1'"),
        ({"rate": 1, "rest": 1}, "x: unknown argument 'rest'; did you mean 'rate'?"),
    ):
        with pytest.raises(RecipeError) as error:
            check("x", form, arguments)
        assert str(error.value) == problem
    check("x", form, {"rate": 1})


def test_a_function_that_takes_others_checks_them_itself() -> None:
    def build(*, depth: int = 1, **options: Any) -> None: ...

    check("model", describe(build), {"depth": 2, "anything": object()})
    with pytest.raises(RecipeError, match=r"model\.depth: must be an integer"):
        check("model", describe(build), {"depth": "x"})


TAKEN = {  # read in torchvision's source by hand
    "resnet18": "groups norm_layer replace_stride_with_dilation width_per_group zero_init_residual",
    "resnext50_32x4d": "norm_layer replace_stride_with_dilation zero_init_residual",  # the others are what it is
    "densenet121": "bn_size drop_rate memory_efficient",
    "efficientnet_b0": "dropout norm_layer stochastic_depth_prob",  # dropout by kwargs.pop
    "mobilenet_v3_small": "block dilated dropout norm_layer reduced_tail width_mult",  # its class swallows any other
    "regnet_y_400mf": "activation block_type norm_layer stem_type stem_width",  # swallows any in one of two calls
    "vgg11": "dropout init_weights",
    "resnet18_cifar": "groups norm_layer replace_stride_with_dilation width_per_group zero_init_residual",
    "vit_s16": "attention_dropout conv_stem_configs dropout hidden_dim image_size mlp_dim norm_layer num_heads "
    "num_layers patch_size representation_size",
    "wrn28_10": "",
    "small_cnn": "stride width",
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_network_has_the_arguments_that_its_builder_passes_on(name: str) -> None:
    assert sorted(catalogue().groups["model"][name].arguments) == sorted([*TAKEN[name].split(), "label_smoothing"])


def test_defaults_that_are_passed_on_are_the_networks_own() -> None:
    networks = catalogue().groups["model"]
    dropout = {name: networks[name].arguments["dropout"].default for name in ("efficientnet_b0", "efficientnet_b7")}
    assert dropout == {"efficientnet_b0": "0.2", "efficientnet_b7": "0.5"}
    assert networks["vit_s16"].arguments["num_heads"].default == "6"
    assert networks["googlenet"].arguments["aux_logits"].default == "False"


def test_no_network_takes_just_any_argument() -> None:
    assert not any(described.takes_others for described in catalogue().groups["model"].values())


@pytest.mark.parametrize("name", ["mlp", "resnet18_cifar", "resnet18", "swin_t", "wrn28_10", "hf_causal_lm"])
def test_an_argument_that_a_network_does_not_take_is_refused(write: Write, name: str) -> None:
    recipe = load_recipe(write(), [f"model={{name: {name}, foo: 1}}"])
    with pytest.raises(RecipeError, match=r"^model: unknown argument 'foo'"):
        check_names(recipe)


SIZES = {  # section -> training samples
    "{name: digits}": 1077,
    "{name: digits, evaluate: validation}": 1077,
    "{name: cifar10, path: ., validation: 10000}": 40_000,
    "{name: cifar100, path: .}": 50_000,
    "{name: fashion_mnist, path: .}": 60_000,
    "{name: imagefolder, path: ., train_subset: 100, validation: 50}": 100,
}


@pytest.mark.parametrize("section", SIZES)
def test_a_batch_is_not_larger_than_the_data(write: Write, section: str) -> None:
    overrides = [f"train_dataset={section}", f"global_train_batch_size={SIZES[section]}"]
    check_names(load_recipe(write(), overrides))
    recipe = load_recipe(write(), [*overrides, f"global_train_batch_size={SIZES[section] + 1}"])
    with pytest.raises(RecipeError) as error:
        check_names(recipe)
    what = f"{SIZES[section] + 1} is more than the {SIZES[section]} training samples"
    assert str(error.value) == f"global_train_batch_size: {what}"


def test_a_declared_size_is_that_of_the_data() -> None:
    for name, load in DATASETS.items():
        if load.samples is not None and "path" not in describe(load).arguments:
            assert len(load(train=True)) == catalogue().groups["dataset"][name].samples == load.samples


MISSING = {  # what names something on the disk, with what it may be
    "train_dataset={name: cifar10, path: PATH}": "folder",
    "train_dataset={name: cifar100, path: PATH}": "folder",
    "train_dataset={name: svhn, path: PATH}": "folder",
    "train_dataset={name: fashion_mnist, path: PATH}": "folder",
    "train_dataset={name: imagefolder, path: PATH}": "folder",
    "eval_dataset={name: cifar10, path: PATH}": "folder",
    "train_dataset={name: text_file, path: PATH}": "file",
    "train_dataset={name: text_table, path: PATH}": "file",
    "train_dataset={name: text_file, path: there.txt, eval_path: PATH}": "file",
    "train_dataset={name: python_docs, tokenizer: PATH}": "folder",
    "model={name: hf_causal_lm, pretrained: PATH}": "folder",
    "model={name: hf_sequence_classification, pretrained: PATH}": "folder",
}


@pytest.mark.parametrize("override", MISSING)
def test_what_is_on_the_disk_is_there(write: Write, override: str) -> None:
    Path("there").mkdir()
    Path("there.txt").write_text("text")
    right, wrong = ("there", "there.txt") if MISSING[override] == "folder" else ("there.txt", "there")
    check_names(load_recipe(write(), [override.replace("PATH", right)]))
    for path in (wrong, "nowhere", "~nobody/x", "a\\0b"):
        with pytest.raises(RecipeError, match=rf"path|pretrained|tokenizer: no {MISSING[override]} '.*'; put it there"):
            check_names(load_recipe(write(), [override.replace("PATH", f'"{path}"')]))


def test_every_argument_for_a_path_is_looked_up() -> None:
    for group in ("dataset", "model"):
        for name, form in catalogue().groups[group].items():
            for argument in form.arguments.keys() & {"path", "eval_path", "tokenizer", "pretrained"}:
                assert any("format" in option for option in form.arguments[argument].options), f"{name}.{argument}"


NAMES = {
    "model.name=small_cn": "model.name: unknown model 'small_cn'; did you mean 'small_cnn'?",
    "model.wdth=3": "model: unknown argument 'wdth'; did you mean 'width'?",
    "optimizer.lr=-.nan": "optimizer.lr: must be a number",
    "optimizer={name: adamw, betas: [0.9, .inf]}": "optimizer.betas.1: must be finite, got inf",
    "scheduler={name: cosin}": "scheduler.name: unknown scheduler 'cosin'",
    "algorithms.sam.rho={name: linear, end: -1}": "algorithms.sam.rho.end: must be a finite number >= 0, got -1",
    "algorithms.sam.rho={name: interval}": "algorithms.sam.rho.name: unknown schedule 'interval'",
    "algorithms.sam.rho={end: 1}": "algorithms.sam.rho.name: required: a part and its arguments",
    "algorithms.sam.policy=interval": "algorithms.sam.policy: must be a policy {name: ...}, or null, got 'interval'",
    "algorithms.mixup.alpha=big": "algorithms.mixup.alpha: must be a number, got 'big'",
    "callbacks.early_stopper={}": "callbacks.early_stopper.monitor: required",
    "loggers.wandb.projct=x": "loggers.wandb: unknown argument 'projct'; did you mean 'project'?",
    "dataloader.num_worker=1": "dataloader: unknown argument 'num_worker'; did you mean",
    "algorithms={sam: {}, asam: {}}": "algorithms: sam and asam cannot be combined",
    "algorithms={SAM: {}, a_sam: {}}": "algorithms: SAM and a_sam cannot be combined",
    "callbacks={speed_monitor: {window_size:3}}": (
        "callbacks.speed_monitor: unknown argument 'window_size:3'; did you mean 'window_size'?; write a space after"
    ),
    "load_path=nothing.pt": "load_path: no such file: nothing.pt",
}


@pytest.mark.parametrize("override", NAMES)
def test_names_are_checked(write: Write, override: str) -> None:
    recipe = load_recipe(write(), [override])
    with pytest.raises(RecipeError) as error:
        check_names(recipe)
    assert str(error.value).startswith(NAMES[override])
