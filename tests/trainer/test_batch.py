"""What is done to a batch in the first pass is done once: the second starts from the batch as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from composer.core import DataSpec, Event
from composer.models import ComposerClassifier
from torch import Tensor, nn
from torch.utils.data import default_collate

from sam_algos import Method
from tests.trainer.training import (
    CLASSES,
    EVERY_KIND,
    AlgorithmOn,
    classifier,
    fit,
    loader,
    outcome,
    same,
)

Transform = Callable[[Any], Any]


def _in_place(batch: Any) -> Any:
    batch[0].mul_(0.5).add_(0.1)
    return batch


def _out_of_place(batch: Any) -> Any:
    return batch[0] * 0.5 + 0.1, *batch[1:]


@pytest.mark.parametrize("size", [4, 2])
@pytest.mark.parametrize("method", EVERY_KIND)
def test_transforms_of_the_microbatch_in_place(method: Method, size: int) -> None:
    def run(transform: Transform) -> Any:
        return fit(
            method,
            data=DataSpec(loader(), microbatch_transforms=transform),
            device_train_microbatch_size=size,
        )

    assert same(outcome(run(_in_place)), outcome(run(_out_of_place)))
    assert not same(outcome(run(_in_place)), outcome(run(lambda batch: batch)))


@pytest.mark.parametrize("method", EVERY_KIND)
def test_algorithms_that_write_into_the_batch(method: Method) -> None:
    def replace(state: Any) -> None:
        state.batch = _out_of_place(state.batch)

    in_place = AlgorithmOn(Event.BEFORE_FORWARD, lambda state: _in_place(state.batch))
    out_of_place = AlgorithmOn(Event.BEFORE_FORWARD, replace)
    assert same(outcome(fit(method, in_place)), outcome(fit(method, out_of_place)))


class _Shift(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self._in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1) if self._in_place else x + 1


class _Dictionaries(ComposerClassifier):
    """Takes batches that are dictionaries with lists in them."""

    def forward(self, batch: Any) -> Tensor:
        return self.module(batch["inputs"]["x"])

    def loss(self, outputs: Tensor, batch: Any, *args: Any, **kwargs: Any) -> Tensor:
        return nn.functional.cross_entropy(outputs, batch["labels"][0], *args, **kwargs)

    def get_metrics(self, is_train: bool = False) -> dict[str, Any]:
        return {}


def _as_dictionary(samples: Any) -> dict[str, Any]:
    x, y = default_collate(samples)
    return {"inputs": {"x": x}, "labels": [y]}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("method", EVERY_KIND)
def test_models_that_write_into_their_input(method: Method, nested: bool) -> None:
    def run(in_place: bool) -> Any:
        layers = nn.Sequential(_Shift(in_place), *classifier().module)
        model = (_Dictionaries if nested else ComposerClassifier)(layers, num_classes=CLASSES)
        data = loader(collate_fn=_as_dictionary) if nested else loader()
        spec = DataSpec(data, split_batch=lambda batch, _: [batch], get_num_samples_in_batch=lambda _: 4)
        return fit(method, model=model, data=spec)

    assert same(outcome(run(in_place=True)), outcome(run(in_place=False)))
