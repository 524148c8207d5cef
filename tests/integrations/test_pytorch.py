"""The page's snippets for plain PyTorch: each trains as `step(closure)` does, to the last bit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.optim.lr_scheduler import CosineAnnealingLR

from sam_algos import SAM
from tests.cases import same
from tests.integrations.page import grouped, loader, network, reference, run, sgd, trained


def snippet(heading: str, **names: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a snippet on a fresh network; returns its names, and the network's state."""
    model = network()
    names = run(heading, **{"model": model, "base": sgd(model), "data": loader(), **names})
    return names, dict(model.state_dict())


def test_a_closure() -> None:
    _, state = snippet("PyTorch")
    assert same(state, trained(grouped(loader())))


def test_gradient_accumulation() -> None:
    for number in range(2):
        _, state = snippet("Gradient accumulation", number=number)
        assert same(state, trained(grouped(loader(), 4)))


def test_what_stands_between_backward_and_step_acts_on_the_methods_gradient(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    names, state = snippet("Clipping, a scheduler, averaged weights, a checkpoint", path=path)
    expected = trained(grouped(loader()), clip=1.0, rate=lambda o: CosineAnnealingLR(o, T_max=1000))
    assert same(state, expected)
    assert int(names["ema"].n_averaged) == len(loader())
    saved = torch.load(path, weights_only=True)
    assert saved["method"] == names["optimizer"].method_state_dict()
    assert saved["optimizer"].keys() == names["base"].state_dict().keys()


def test_a_grad_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arithmetic stays in float32, so that only the scaling is tested: its scale is a power of two."""
    monkeypatch.setattr("torch.amp.autocast", lambda *_: torch.enable_grad())
    names, state = snippet("Mixed precision with a GradScaler")
    assert names["scaler"].get_scale() == 2.0**16
    assert same(state, trained(grouped(loader()), clip=1.0))


def test_a_grad_scaler_with_autocast() -> None:
    names, _ = snippet("Mixed precision with a GradScaler")
    overflows = 16 - math.log2(names["scaler"].get_scale())
    assert names["optimizer"].method_state_dict()["step"] == len(loader()) - overflows


def test_a_grad_scaler_that_is_not_given_is_refused_by_pytorch_or_by_the_step() -> None:
    model = network()
    optimizer = SAM().wrap(sgd(model), model=model)
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        scaler.step(optimizer, closure=lambda: model(torch.ones(2, 6)).sum())
    scaler.scale(model(torch.ones(2, 6)).sum()).backward()
    with pytest.raises(TypeError, match="needs the closure"):
        scaler.step(optimizer)


@pytest.fixture
def _alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_alone")
def test_distributed_data_parallel() -> None:
    _, state = snippet("DistributedDataParallel")
    expected = trained(grouped(loader(), 2))
    assert all(torch.allclose(state[name], value, atol=1e-6) for name, value in expected.items())


def test_what_was_accumulated_outside_of_the_closure_is_refused() -> None:
    model = network()
    optimizer: Any = reference(model, [])
    (x, y), (a, b) = grouped(loader(), 2)[0]
    torch.nn.functional.cross_entropy(model(x), y).backward()

    def closure() -> Any:
        loss = torch.nn.functional.cross_entropy(model(a), b)
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="cannot be repeated"):
        optimizer.backward(closure)
