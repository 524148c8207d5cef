from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, default_collate

from sam_algos.recipes.data import images
from sam_algos.recipes.data.datasets import build_dataset
from sam_algos.recipes.data.samples import LabelledImages

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _forgotten() -> Any:
    images._mnist1d.cache_clear()
    yield
    images._mnist1d.cache_clear()


def parts() -> list[Any]:
    section = {"name": "mnist1d"}
    train = build_dataset("train_dataset", section, train=True)
    others = [build_dataset("x", {**section, "evaluate": part}, train=False) for part in ("validation", "test")]
    return [train, *others]


def test_the_signals_are_those_of_one_call_of_the_published_generator(tmp_path: Path, monkeypatch: Patch) -> None:
    from mnist1d.data import get_dataset_args, make_dataset

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.rand()
    random.seed(5)
    np.random.seed(5)
    found = parts()
    assert (random.random(), np.random.rand()) == expected  # global streams are left alone

    arguments = get_dataset_args()
    arguments.num_samples, arguments.seed, arguments.train_split = 18_000, 0, 1.0
    data = make_dataset(arguments)
    for part, start, end in zip(found, (0, 4000, 8000), (4000, 8000, 18_000), strict=True):
        assert torch.equal(part.images.tensors[0][:, 0], torch.tensor(data["x"][start:end], dtype=torch.float32))
        assert part.labels.tolist() == data["y"][start:end].tolist()

    images._mnist1d.cache_clear()
    monkeypatch.setattr(images, "_generated", lambda **_: pytest.fail("it is in the cache"))
    for part, again in zip(found, parts(), strict=True):
        assert torch.equal(part.images.tensors[0], again.images.tensors[0]) and torch.equal(part.labels, again.labels)


def test_a_recipe_is_validated_without_the_generator() -> None:
    code = (
        "import sys\nfrom sam_algos.command import main\nassert main(['validate', 'mnist1d']) == 0\n"
        "assert not {'mnist1d', 'requests', 'matplotlib', 'torch', 'composer'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("chosen", [None, [3, 0, 7, 1, 6]])
def test_batches_of_tensors_are_sliced_and_equal_to_collated_samples(chosen: list[int] | None) -> None:
    data = LabelledImages(TensorDataset(torch.randn(10, 2, 3)), torch.arange(10), num_classes=10)
    data = data if chosen is None else data.among(chosen)
    expected = [default_collate([data[i] for i in range(start, min(start + 4, len(data)))]) for start in (0, 4)]
    for batch, reference in zip(DataLoader(data, batch_size=4, collate_fn=data.collate), expected, strict=False):
        assert all(torch.equal(one, other) for one, other in zip(batch, reference, strict=True))

    data.transform = lambda image: image + 1  # what an algorithm adds acts on every sample
    batch = next(iter(DataLoader(data, batch_size=4, collate_fn=data.collate)))
    assert torch.equal(batch[0], expected[0][0] + 1) and torch.equal(batch[1], expected[0][1])
