"""BatchNorm's statistics are those of the weights as they are, and nothing else has moved."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sam_algos import recalibrate
from tests.cases import same

Batches = list[tuple[Tensor, Tensor]]


def network() -> Any:
    """With dropout before the second BatchNorm; statistics and momenta are those of some training."""
    torch.manual_seed(0)
    second = nn.BatchNorm1d(3, momentum=None)
    model: Any = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5, momentum=0.3), nn.Dropout(0.5), nn.Linear(5, 3), second
    )
    for x, _ in batches(7):
        model(10 * x)
    return model.double()


def batches(count: int, last: int = 6) -> Batches:
    draws = torch.Generator().manual_seed(1)
    sizes = [6] * (count - 1) + [last]
    return [(torch.randn(n, 4, generator=draws), torch.zeros(n)) for n in sizes]


def in_double(data: Batches) -> Batches:
    return [(x.double(), y) for x, y in data]


def modes(model: nn.Module) -> list[bool]:
    return [m.training for m in model.modules()]


def test_statistics_are_the_plain_average_over_batches() -> None:
    model, data = network(), in_double(batches(5, last=3))
    assert recalibrate(model, data) == 5
    inputs = {1: [model[0](x) for x, _ in data]}
    normed = [
        (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt() * model[1].weight + model[1].bias for h in inputs[1]
    ]
    inputs[4] = [model[3](h) for h in normed]  # nothing is dropped
    for place, values in inputs.items():
        assert torch.allclose(model[place].running_mean, torch.stack([h.mean(0) for h in values]).mean(0), atol=1e-12)
        assert torch.allclose(model[place].running_var, torch.stack([h.var(0) for h in values]).mean(0), atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_all_else_is_as_before(training: bool) -> None:
    model = network().train(training)
    model[2].train(not training)
    before = modes(model), [model[1].momentum, model[4].momentum], [p.clone() for p in model.parameters()]
    streams = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()

    class Drawing(list):
        def __iter__(self) -> Iterator[Tensor]:
            torch.rand(())  # as a DataLoader does
            return drawing()

    def drawing() -> Iterator[Tensor]:
        for x, _ in in_double(batches(3)):
            assert not torch.is_grad_enabled()
            yield x + random.random() + float(np.random.rand()) + torch.rand(())

    assert recalibrate(model, Drawing()) == 3
    assert (modes(model), [model[1].momentum, model[4].momentum]) == before[:2]
    assert same(before[2], list(model.parameters()))
    assert all(p.grad is None for p in model.parameters())
    assert same(streams, (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_batch_that_raises_changes_nothing(error: type[BaseException]) -> None:
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}, modes(model), torch.get_rng_state()

    def failing() -> Iterator[Tensor]:
        yield in_double(batches(1))[0][0] + torch.rand(())
        raise error

    with pytest.raises(error):
        recalibrate(model, failing())
    assert same(before, (dict(model.state_dict()), modes(model), torch.get_rng_state()))
    assert model[1].momentum == 0.3


def test_frozen_layers_are_left_alone() -> None:
    model = network().train()
    model[1].eval()
    before = model[1].running_mean.clone(), model[4].running_mean.clone()
    recalibrate(model, in_double(batches(2)))
    assert torch.equal(model[1].running_mean, before[0])
    assert not model[1].training
    assert not torch.equal(model[4].running_mean, before[1])


def test_the_layers_can_be_named() -> None:
    model = network().eval()
    before = model[1].running_mean.clone(), model[4].running_mean.clone()
    recalibrate(model, in_double(batches(2)), layers=[model[1]])
    assert not torch.equal(model[1].running_mean, before[0])
    assert torch.equal(model[4].running_mean, before[1])


def test_a_layer_that_no_pass_comes_by_keeps_its_statistics() -> None:
    model: Any = nn.ModuleList([network(), nn.BatchNorm1d(4)])
    model[1](torch.randn(6, 4))
    before = {name: value.clone() for name, value in model[1].state_dict().items()}
    assert recalibrate(model, in_double(batches(2)), forward=lambda m, batch: m[0](batch[0])) == 2
    assert same(before, dict(model[1].state_dict()))


def test_without_batchnorm_no_batch_is_asked_for() -> None:
    def refuse() -> Iterator[Tensor]:
        raise AssertionError
        yield

    assert recalibrate(nn.Linear(2, 2), refuse()) == 0
    frozen = nn.Sequential(nn.BatchNorm1d(2, momentum=0.0), nn.BatchNorm1d(2, track_running_stats=False))
    assert recalibrate(frozen, refuse()) == 0


def test_a_limit_is_kept_and_checked() -> None:
    model, other = network(), network()
    assert recalibrate(model, in_double(batches(5)), limit=2) == 2
    assert recalibrate(other, in_double(batches(2))) == 2
    assert same(dict(model.state_dict()), dict(other.state_dict()))
    for limit in (0, 1.5, True):
        with pytest.raises(ValueError, match=rf"recalibrate\(limit={limit}\): limit must be an integer >= 1"):
            recalibrate(model, [], limit=limit)  # pyright: ignore[reportArgumentType]


def test_no_batches_are_refused() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"recalibrate\(batches=\.\.\.\): batches must hold at least one batch"):
        recalibrate(model, [])
    assert same(before, dict(model.state_dict()))
