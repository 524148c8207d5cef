"""Tiny files in the formats of the published data sets, so that the real loading code runs."""

from __future__ import annotations

import hashlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision import datasets as tv

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


def write_svhn(root: Path, patch: Patch) -> None:
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


def write_imagefolder(root: Path, patch: Patch) -> None:
    for split in ("train", "val"):
        for index in range(N):
            path = root / split / "abc"[index % 3] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(_pixels((40, 50, 3))).save(path)


WRITERS: dict[str, Callable[[Path, Patch], None]] = {
    "cifar10": lambda root, patch: _write_cifar(root, patch, tv.CIFAR10, "labels", "label_names", 10),
    "cifar100": lambda root, patch: _write_cifar(root, patch, tv.CIFAR100, "fine_labels", "fine_label_names", 100),
    "svhn": write_svhn,
    "fashion_mnist": _write_fashion_mnist,
    "imagefolder": write_imagefolder,
}


def section_of(name: str, options: dict[str, Any], root: Path, patch: Patch) -> dict[str, Any]:
    if name not in WRITERS:
        return {"name": name, **options}
    WRITERS[name](root, patch)
    return {"name": name, "path": str(root), **options}
