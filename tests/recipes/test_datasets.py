from __future__ import annotations

import hashlib
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torchvision import datasets as tv

from sam_algos.recipes import RecipeError
from sam_algos.recipes.datasets import DATASETS, build_dataset, eval_section

N = 12  # images in each file
Patch = pytest.MonkeyPatch


def _pixels(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _write_cifar(root: Path, patch: Patch, dataset: Any, label_key: str, meta_key: str, classes: int) -> None:
    folder = root / dataset.base_folder
    folder.mkdir()

    def write(name: str, content: dict[str, Any]) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    entry = {"data": _pixels((N, 3072)), label_key: [i % classes for i in range(N)]}
    for kind in ("train_list", "test_list"):
        patch.setattr(dataset, kind, [[name, write(name, entry)] for name, _ in getattr(dataset, kind)])
    name = dataset.meta["filename"]
    digest = write(name, {meta_key: [str(i) for i in range(classes)]})
    patch.setattr(dataset, "meta", {"filename": name, "key": meta_key, "md5": digest})


def _write_svhn(root: Path, patch: Patch) -> None:
    split_list = {}
    for split, (url, name, _) in tv.SVHN.split_list.items():
        labels = np.arange(1, N + 1, dtype=np.uint8).reshape(-1, 1) % 10 + 1  # the files write 10 for 0
        scipy.io.savemat(root / name, {"X": _pixels((32, 32, 3, N)), "y": labels})
        split_list[split] = [url, name, hashlib.md5((root / name).read_bytes()).hexdigest()]
    patch.setattr(tv.SVHN, "split_list", split_list)


def _write_fashion_mnist(root: Path, patch: Patch) -> None:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        images = struct.pack(">4i", 0x803, N, 28, 28) + _pixels((N, 28, 28)).tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images)
        labels = struct.pack(">2i", 0x801, N) + bytes(i % 10 for i in range(N))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def _write_imagefolder(root: Path, patch: Patch) -> None:
    for split in ("train", "val"):
        for index in range(N):
            path = root / split / "abc"[index % 3] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_pixels((40, 50, 3))).save(path)


WRITERS: dict[str, Callable[[Path, Patch], None]] = {
    "cifar10": lambda root, patch: _write_cifar(root, patch, tv.CIFAR10, "labels", "label_names", 10),
    "cifar100": lambda root, patch: _write_cifar(root, patch, tv.CIFAR100, "fine_labels", "fine_label_names", 100),
    "svhn": _write_svhn,
    "fashion_mnist": _write_fashion_mnist,
    "imagefolder": _write_imagefolder,
}
# name, options -> training samples, test samples, image shape, classes
CASES: list[tuple[str, dict[str, Any], int, int, tuple[int, ...], int]] = [
    ("digits", {}, 1437, 360, (1, 8, 8), 10),
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
]


def _section(name: str, options: dict[str, Any], root: Path, patch: Patch) -> dict[str, Any]:
    if name not in WRITERS:
        return {"name": name, **options}
    WRITERS[name](root, patch)
    return {"name": name, "path": str(root), **options}


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")  # torchvision's
@pytest.mark.parametrize(("name", "options", "n_train", "n_test", "shape", "classes"), CASES)
def test_every_dataset(
    name: str, options: dict[str, Any], n_train: int, n_test: int, shape: tuple[int, ...], classes: int,
    tmp_path: Path, monkeypatch: Patch,
) -> None:  # fmt: skip
    section = _section(name, options, tmp_path, monkeypatch)
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
    assert {case[0] for case in CASES} == set(DATASETS)


def test_svhn_labels_read_ten_as_zero(tmp_path: Path, monkeypatch: Patch) -> None:
    _write_svhn(tmp_path, monkeypatch)
    data = build_dataset("train_dataset", {"name": "svhn", "path": str(tmp_path)}, train=True)
    assert data.labels.tolist() == [(i % 10 + 1) % 10 for i in range(1, N + 1)]


def test_digits_split_is_fixed_stratified_and_disjoint() -> None:
    train, test = (build_dataset("train_dataset", {"name": "digits"}, train=part) for part in (True, False))
    torch.manual_seed(5)
    again = build_dataset("train_dataset", {"name": "digits"}, train=True)
    assert torch.equal(train.labels, again.labels)
    assert torch.bincount(test.labels).min() >= 34
    seen = {tuple(train[i][0].flatten().tolist()) for i in range(len(train))}
    assert sum(tuple(test[i][0].flatten().tolist()) in seen for i in range(len(test))) <= 1
    assert -1 <= min(train[i][0].min() for i in range(9)) <= max(train[i][0].max() for i in range(9)) <= 1


def test_cutout_zeroes_a_square(tmp_path: Path, monkeypatch: Patch) -> None:
    section = _section("cifar10", {"augmentation": "cutout"}, tmp_path, monkeypatch)
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
            "data.path: no folder 'nowhere'; put the data there",
        ),
        ({"name": "cifar10", "path": "."}, True, "data.path: '.' does not hold the data"),
        ({"name": "svhn", "path": "."}, True, "data.path: '.' does not hold the data"),
        ({"name": "fashion_mnist", "path": "."}, True, "data.path: '.' does not hold the data"),
        ({"name": "imagefolder", "path": "."}, True, "data.path: no folder 'train'"),
        (
            {"name": "cifar10", "path": ".", "augmentation": "cutuot"},
            True,
            "data.augmentation: augmentation 'cutuot'",
        ),
        ({"name": "cifar10", "path": 3}, True, "data.path: 3 is not of type str"),
        (
            {"name": "digits", "lable_noise": 0.4},
            True,
            "unknown argument 'lable_noise'; did you mean 'label_noise'?",
        ),
        (
            {"name": "digits", "label_noise": 1.0},
            True,
            "data.label_noise: label_noise must be in [0, 1), got 1.0",
        ),
        ({"name": "digits", "label_noise": "much"}, True, "data.label_noise: 'much' is not of type float"),
        ({"name": "digits", "noise_seed": 0.5}, True, "data.noise_seed: 0.5 is not of type int"),
        ({"name": "digits", "label_noise": 0.4}, False, "data.label_noise: label_noise is for training data"),
        ({"name": "digits", "train": False}, True, "data: unknown argument 'train'"),
    ],
)
def test_wrong_dataset(section: dict[str, Any], train: bool, message: str, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        build_dataset("data", section, train=train)
    assert "download=True" not in str(caught.value)
