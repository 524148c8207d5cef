from __future__ import annotations

import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.utils.misc import add_vision_dataset_transform
from PIL import Image
from torchvision import datasets as tv

from sam_algos.recipes import RecipeError
from sam_algos.recipes.data.datasets import DATASETS, build_dataset, eval_section
from tests.recipes.image_files import N, Patch, section_of, write_imagefolder, write_svhn

# name, options -> training samples, test samples, image shape, classes
CASES: list[tuple[str, dict[str, Any], int, int, tuple[int, ...], int]] = [
    ("digits", {}, 1077, 360, (1, 8, 8), 10),
    ("cifar10", {}, 5 * N, N, (3, 32, 32), 10),
    ("cifar10", {"augmentation": "none"}, 5 * N, N, (3, 32, 32), 10),
    ("cifar10", {"augmentation": "cutout"}, 5 * N, N, (3, 32, 32), 10),
    ("cifar10", {"augmentation": "autoaugment"}, 5 * N, N, (3, 32, 32), 10),
    ("cifar100", {}, N, N, (3, 32, 32), 100),
    ("svhn", {}, N, N, (3, 32, 32), 10),
    ("svhn", {"extra": True}, 2 * N, N, (3, 32, 32), 10),
    ("svhn", {"augmentation": "autoaugment"}, N, N, (3, 32, 32), 10),
    ("fashion_mnist", {}, N, N, (1, 28, 28), 10),
    ("fashion_mnist", {"rgb": True}, N, N, (3, 28, 28), 10),
    ("imagefolder", {"image_size": 16, "resize": 20}, N, N, (3, 16, 16), 3),
    ("imagefolder", {"image_size": 8, "augmentation": "cutout", "cache": True}, N, N, (3, 8, 8), 3),
    ("imagefolder", {"image_size": 8, "augmentation": "none", "train_subset": 6, "validation": 3}, 6, N, (3, 8, 8), 3),
    ("cifar10", {"train_subset": 2 * N, "validation": N}, 2 * N, N, (3, 32, 32), 10),
    ("mnist1d", {}, 4000, 10_000, (1, 40), 10),
    ("mnist1d", {"evaluate": "validation"}, 4000, 4000, (1, 40), 10),
]


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")  # torchvision's
@pytest.mark.parametrize(("name", "options", "n_train", "n_test", "shape", "classes"), CASES)
def test_every_dataset(
    name: str, options: dict[str, Any], n_train: int, n_test: int, shape: tuple[int, ...], classes: int,
    tmp_path: Path, monkeypatch: Patch,
) -> None:  # fmt: skip
    section = section_of(name, options, tmp_path, monkeypatch)
    train = build_dataset("train_dataset", {**section, "label_noise": 0.25}, train=True)
    test = build_dataset("eval_dataset", eval_section({**section, "label_noise": 0.25}), train=False)
    clean = build_dataset("train_dataset", section, train=True)
    assert (len(train), len(test), train.num_classes, test.num_classes) == (n_train, n_test, classes, classes)
    assert int((train.labels != clean.labels).sum()) == round(0.25 * n_train)
    for data in (train, test):
        image, label = data[len(data) - 1]
        assert (tuple(image.shape), image.dtype) == (shape, torch.float32)
        assert 0 <= label < classes
    if options.get("augmentation") == "none":
        assert torch.equal(train[0][0], train[0][0])
    assert torch.equal(test[0][0], test[0][0])


def test_all_datasets_have_a_case() -> None:
    texts = {"python_docs", "python_topics", "text_file", "text_table"}  # in test_texts.py
    assert {case[0] for case in CASES} == set(DATASETS) - texts


def test_svhn_labels_read_ten_as_zero(tmp_path: Path, monkeypatch: Patch) -> None:
    write_svhn(tmp_path, monkeypatch)
    data = build_dataset("train_dataset", {"name": "svhn", "path": str(tmp_path)}, train=True)
    assert data.labels.tolist() == [(i % 10 + 1) % 10 for i in range(1, N + 1)]


def _samples(section: dict[str, Any], part: str) -> list[tuple[float, ...]]:
    """The images of one part, as values that can be compared."""
    if part != "train":
        section = {**section, "evaluate": part}
    data = build_dataset("data", section, train=part == "train")
    return [tuple(data[i][0].flatten().tolist()) for i in range(len(data))]


def test_digits_are_divided_by_the_seed_but_for_the_validation_images() -> None:
    first, second = ({"name": "digits", "split_seed": seed} for seed in (0, 1))
    parts = {part: _samples(first, part) for part in ("train", "validation", "test")}
    assert {part: len(found) for part, found in parts.items()} == {"train": 1077, "validation": 360, "test": 360}
    everything = [image for found in parts.values() for image in found]
    assert len(set(everything)) >= 1796  # two of the digits may be the same
    assert _samples(second, "validation") == parts["validation"]
    assert set(_samples(second, "test")) != set(parts["test"])
    assert _samples(first, "train") == parts["train"]
    assert torch.bincount(build_dataset("data", first, train=False).labels).min() >= 34
    assert -1 <= min(everything[0]) <= max(everything[0]) <= 1


def test_validation_images_are_apart_from_those_trained_on_and_not_augmented(tmp_path: Path) -> None:
    write_imagefolder(tmp_path, pytest.MonkeyPatch())
    drawn = {"train_subset": 6, "validation": 3, "split_seed": 4}
    section = {"name": "imagefolder", "path": str(tmp_path), "image_size": 40, "augmentation": "basic", **drawn}
    plain = {**section, "augmentation": "none"}
    train, validation = _samples(plain, "train"), _samples(plain, "validation")
    assert _samples(section, "validation") == validation and _samples(section, "train") != train
    aside = build_dataset("data", {**section, "evaluate": "validation"}, train=False)
    assert torch.bincount(build_dataset("data", section, train=True).labels).tolist() == [2, 2, 2]
    assert torch.bincount(aside.labels).tolist() == [1, 1, 1]


def test_a_cached_folder_gives_what_an_uncached_one_does(tmp_path: Path) -> None:
    write_imagefolder(tmp_path, pytest.MonkeyPatch())
    section = {"name": "imagefolder", "path": str(tmp_path), "image_size": 24, "augmentation": "none"}
    for part in ("train", "test"):
        cached = build_dataset("data", {**section, "cache": True}, train=part == "train")
        plain = build_dataset("data", section, train=part == "train")
        assert all(torch.equal(cached[i][0], plain[i][0]) for i in [*range(len(plain)), 0])
    for index in range(N):  # read once, and not again
        for path in tmp_path.glob(f"train/*/{index}.png"):
            path.unlink()
    again = build_dataset("data", {**section, "cache": True}, train=True)
    assert again[0][0].shape == (3, 24, 24)


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")  # torchvision's
@pytest.mark.parametrize(
    ("name", "options", "stored"),
    [
        ("digits", {}, torch.Tensor),
        ("cifar10", {"augmentation": "cutout"}, Image.Image),
        ("svhn", {}, Image.Image),
        ("fashion_mnist", {"rgb": True}, Image.Image),
        ("imagefolder", {"image_size": 8}, Image.Image),
        ("imagefolder", {"image_size": 8, "augmentation": "none", "cache": True}, torch.Tensor),
    ],
)
def test_what_composer_adds_to_a_dataset_sees_images_before_they_are_normalised(
    name: str, options: dict[str, Any], stored: type, tmp_path: Path, monkeypatch: Patch
) -> None:
    section = section_of(name, options, tmp_path, monkeypatch)
    data = build_dataset("data", section, train=True)
    assert isinstance(data, tv.VisionDataset) and data in weakref.WeakSet([data])
    shape, seen = data[0][0].shape, list[Any]()

    def black(image: Any) -> Any:
        seen.append(image)
        return image * 0 if isinstance(image, torch.Tensor) else Image.new(image.mode, image.size)

    add_vision_dataset_transform(data, black, is_tensor_transform=False)
    image, _ = data[0]
    assert isinstance(seen[0], stored) and (image.shape, image.dtype) == (shape, torch.float32)
    if stored is torch.Tensor:
        assert seen[0].min() >= 0
    assert image.max() <= 0  # black is below the mean, and zero where there is a hole
    other = build_dataset("data", section, train=False)
    assert other[0][0].max() > 0 and len(seen) == 1


def test_cutout_zeroes_a_square(tmp_path: Path, monkeypatch: Patch) -> None:
    section = section_of("cifar10", {"augmentation": "cutout"}, tmp_path, monkeypatch)
    data = build_dataset("train_dataset", section, train=True)
    zeros = torch.stack([(data[i][0] == 0).all(0) for i in range(len(data))]).float()
    assert 64 <= float(zeros.sum((1, 2)).min()) <= float(zeros.sum((1, 2)).max()) <= 256


@pytest.mark.parametrize(
    ("section", "train", "message"),
    [
        ({"name": "cifra10"}, True, "data.name: unknown dataset 'cifra10'; did you mean 'cifar10'?"),
        ({"name": "cifar10"}, True, "data.path: required"),
        (
            {"name": "cifar10", "path": "nowhere"},
            True,
            "data.path: no folder 'nowhere'; put it there",
        ),
        ({"name": "cifar10", "path": "."}, True, "data.path: '.' does not hold the data"),
        ({"name": "svhn", "path": "."}, True, "data.path: '.' does not hold the data"),
        ({"name": "fashion_mnist", "path": "."}, True, "data.path: '.' does not hold the data"),
        ({"name": "imagefolder", "path": "."}, True, "data.path: no folder 'train'"),
        (
            {"name": "cifar10", "path": ".", "augmentation": "cutuot"},
            True,
            "data.augmentation: must be one of 'none', 'basic', 'cutout', 'autoaugment', got 'cutuot'",
        ),
        ({"name": "cifar10", "path": 3}, True, "data.path: must be a folder, got 3"),
        (
            {"name": "digits", "lable_noise": 0.4},
            True,
            "unknown argument 'lable_noise'; did you mean 'label_noise'?",
        ),
        (
            {"name": "digits", "label_noise": 1.0},
            True,
            "data.label_noise: must be a number in [0, 1), got 1.0",
        ),
        ({"name": "digits", "label_noise": "much"}, True, "data.label_noise: must be a number in [0, 1), got 'much'"),
        ({"name": "digits", "noise_seed": 0.5}, True, "data.noise_seed: must be an integer, got 0.5"),
        ({"name": "digits", "label_noise": 0.4}, False, "data.label_noise: is for training data"),
        ({"name": "digits", "train": False}, True, "data: unknown argument 'train'"),
        ({"name": "digits", "part": "test"}, True, "data: unknown argument 'part'"),
        (
            {"name": "digits", "evaluate": "train"},
            False,
            "data.evaluate: must be one of 'test', 'validation', got 'train'",
        ),
        (
            {"name": "imagefolder", "path": ".", "augmentation": "basik"},
            True,
            "data.augmentation: must be one of 'none', 'basic'",
        ),
        (
            {"name": "imagefolder", "path": ".", "cache": True},
            True,
            "data.cache: must be false with augmentation 'imagenet'",
        ),
    ],
)
def test_wrong_dataset(section: dict[str, Any], train: bool, message: str, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        build_dataset("data", section, train=train)
    assert "download=True" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluate": "validation"}, "data.evaluate: there are no validation samples"),
        ({"validation": 61}, "data.validation: must be in [0, 60], the size of the training set, got 61"),
        ({"train_subset": 0}, "data.train_subset: must be in [1, 60], the size of the training set, got 0"),
        ({"train_subset": 50, "validation": 20}, "data.train_subset: must be at most 40 beside 20 for validation"),
        ({"validation": 4}, "data.validation: cannot keep the classes' shares"),
    ],
)
def test_wrong_divisions(options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: Patch) -> None:
    section = {**section_of("cifar10", {}, tmp_path, monkeypatch), **options}
    with pytest.raises(RecipeError, match=re.escape(message)):
        build_dataset("data", section, train="evaluate" not in options)
