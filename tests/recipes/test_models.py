from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import torch
from torch import nn

from sam_algos.recipes import RecipeError
from sam_algos.recipes.data import models as module
from sam_algos.recipes.data.models import models
from sam_algos.recipes.data.samples import LabelledImages

RGB, DIGIT = (3, 32, 32), (1, 8, 8)
VIT = {"image_size": 32, "patch_size": 8, "num_layers": 1}
BUILT: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("small_cnn", {}, DIGIT),
    ("small_cnn", {"width": 4}, RGB),
    ("resnet18_cifar", {}, RGB),
    ("resnet18_cifar", {"zero_init_residual": True}, (1, 28, 28)),
    ("vit_s16", {"image_size": 32, "patch_size": 4}, RGB),
    ("vit_s16", {**VIT, "dropout": 0.1}, RGB),
    ("resnet20", {}, RGB),
    ("resnet20", {}, (1, 32, 32)),
    ("wrn28_10", {}, RGB),
    ("pyramidnet110_a270", {}, RGB),
    ("resnet18", {}, RGB),
    ("mobilenet_v3_small", {}, RGB),
    ("googlenet", {}, (3, 64, 64)),
]


def build_model(section: dict[str, Any], sample: torch.Tensor, num_classes: int) -> Any:
    return module.build_model(section, LabelledImages([[sample]], [0], num_classes))


@pytest.mark.parametrize(("name", "options", "shape"), BUILT)
def test_model_builds_and_trains_on_a_batch(name: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    if name in ("resnet20", "wrn28_10", "pyramidnet110_a270"):
        pytest.importorskip("pytorchcv")
    model = build_model({"name": name, **options}, torch.randn(shape), num_classes=7)
    assert model.training
    batch = (torch.randn(2, *shape), torch.tensor([1, 6]))
    assert model.eval().forward(batch).shape == (2, 7)
    soft = torch.full((2, 7), 1 / 7)
    assert float(model.loss(model.forward(batch), (batch[0], soft))) > 0


FAMILIES = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "regnet_x_400mf", "resnext50_32x4d", "shufflenet_v2_x0_5", 
    "squeezenet1_0", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32", "wide_resnet50_2",
]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_torchvision_takes_num_classes(name: str) -> None:
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # regnet computes with tensors
        network = models()[name](num_classes=7)
    *_, last = [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    assert 7 in (getattr(last, "out_features", None), getattr(last, "out_channels", None))


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18_cifar", 11_173_962), ("wrn28_10", 36_479_194), ("resnet20", 272_474)]
)
def test_number_of_parameters(name: str, size: int) -> None:
    if name != "resnet18_cifar":
        pytest.importorskip("pytorchcv")
    model = build_model({"name": name}, torch.randn(RGB), num_classes=10)
    assert sum(parameter.numel() for parameter in model.module.parameters()) == size


def test_vit_s16_is_vit_s16() -> None:
    with torch.device("meta"):
        network = models()["vit_s16"](num_classes=1000)
    assert sum(parameter.numel() for parameter in network.parameters()) == 22_050_664


def test_small_cnn_has_batchnorm() -> None:
    model = build_model({"name": "small_cnn"}, torch.randn(DIGIT), num_classes=10)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == 3


@pytest.mark.parametrize(
    ("section", "shape", "message"),
    [
        (
            {"name": "resnet18_cifra"},
            RGB,
            "model.name: unknown model 'resnet18_cifra'; did you mean 'resnet18_cifar'?",
        ),
        ({"name": "small_cnn", "widht": 3}, DIGIT, "model: unknown argument 'widht'; did you mean 'width'?"),
        ({"name": "small_cnn", "width": 0}, DIGIT, "model"),
        ({"name": "small_cnn", "num_classes": 3}, DIGIT, "model: unknown argument 'num_classes'"),
        ({"name": "resnet18", "depth": 3}, RGB, "model.depth: resnet18 has no such argument"),
        (
            {"name": "resnet18", "weights": "DEFAULT"},
            RGB,
            "model.weights: networks are trained from scratch",
        ),
        ({"name": "resnet18"}, DIGIT, "model: resnet18 does not take 1x8x8 images: "),
        ({"name": "vit_s16"}, RGB, "model: vit_s16 does not take 3x32x32 images: "),
        ({"name": "vit_s16", "image_size": 32, "patch_size": 5}, RGB, "model: "),
    ],
)
def test_wrong_model(section: dict[str, Any], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(message)):
        build_model(section, torch.randn(shape), num_classes=10)


def test_missing_pytorchcv_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorchcv.model_provider", None)
    with pytest.raises(
        RecipeError, match=re.escape("model: wrn28_10 comes from pytorchcv: pip install 'sam_algos[models]'")
    ):
        build_model({"name": "wrn28_10"}, torch.randn(RGB), num_classes=10)
