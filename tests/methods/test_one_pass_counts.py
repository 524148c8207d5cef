"""Nothing wrong in silence: whatever modules keep from one forward pass to the next is kept as of one pass a step.

Each is held against training without a method, whose learning rate is zero where the weights must not differ.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sam_algos import SAM, LookSAM, Method, MomentumSAM
from tests.cases import Closure, Notes, make_batches, same, wrap

each = pytest.mark.parametrize("method", [SAM(rho=0.5), LookSAM(rho=0.5, k=2), MomentumSAM(rho=0.5)], ids=str)


class Body(nn.Module):
    """What surrounds the modules below, on which each pass of a step works anew."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.keep(torch.tanh(self.first(x))))

    def keep(self, h: Tensor) -> Tensor:
        return h


def after(make: Callable[[], Body], method: Method | None, count: int = 5) -> Body:
    """A model after training with every learning rate at zero, so that nothing but what it keeps can change."""
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    model = make()
    optimizer = wrap(method, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for batch in make_batches(count):
        optimizer.step(Closure(model, optimizer, batch))
    return model


class Everything(Body):
    """Python's own kinds, tensors and generators, all used in every pass."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.mean, self.flag = 0, 0.5, False
        self.history, self.table, self.seen = [1.0], {"a": 0}, set()
        self.tensor, self.list = torch.zeros(8), [torch.zeros(1)]
        self.torch_stream = torch.Generator().manual_seed(3)
        self.numpy_stream, self.python_stream = np.random.default_rng(4), random.Random(5)
        self.legacy_stream = np.random.RandomState(6)
        self.drawn = Notes()

    def keep(self, h: Tensor) -> Tensor:
        self.count, self.mean, self.flag = self.count + 1, 0.9 * self.mean + 0.1, not self.flag
        self.history.append(self.mean)
        self.table[f"{self.count}"] = self.count
        self.seen.add(self.count)
        self.tensor += 1.0
        self.list.append(torch.full((1,), float(self.count)))
        draw = [float(torch.rand((), generator=self.torch_stream)), self.numpy_stream.random()]
        draw += [self.python_stream.random(), self.legacy_stream.rand()]
        self.drawn.taken.append((self.count, draw))
        return h * sum(draw)


@each
def test_whatever_a_module_keeps_as_an_attribute(method: Method) -> None:
    plain, ours = after(Everything, None), after(Everything, method)
    for name in ("count", "mean", "flag", "history", "table", "seen", "tensor", "list"):
        assert same(getattr(ours, name), getattr(plain, name)), name
    assert [draw for i, draw in enumerate(ours.drawn.taken) if draw not in ours.drawn.taken[:i]] == plain.drawn.taken


class SecondOnly(Body):
    """Buffers changed only by a pass at displaced weights, registered by the first forward, or replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("peak", torch.zeros(()))
        self.register_buffer("latest", torch.zeros(8))
        self.clean = SimpleNamespace(weight=None)

    def keep(self, h: Tensor) -> Tensor:
        if self.clean.weight is None:
            self.clean.weight = self.first.weight.detach().clone()
        elif not torch.equal(self.clean.weight, self.first.weight):
            self.peak += 1
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.zeros(()))
        self.late += 1
        self.latest = h.detach().mean(0)
        return h


def test_buffers_of_every_kind() -> None:
    plain, ours = after(SecondOnly, None), after(SecondOnly, SAM(rho=0.5))
    assert same(dict(ours.named_buffers()), dict(plain.named_buffers()))
    assert ours.late == 5


class Recurrent(Body):
    """Hidden state carried from batch to batch, as an attribute or as a buffer."""

    def __init__(self, buffer: bool) -> None:
        super().__init__()
        self.starts = Notes()
        if buffer:
            self.register_buffer("hidden", torch.zeros(8))
        else:
            self.hidden = torch.zeros(8)

    def keep(self, h: Tensor) -> Tensor:
        self.starts.taken.append(self.hidden.clone())
        out = torch.tanh(h + self.hidden)
        self.hidden = out.detach().mean(0)
        return out


@pytest.mark.parametrize("buffer", [True, False], ids=["buffer", "attribute"])
def test_hidden_state_that_both_passes_start_from(buffer: bool) -> None:
    plain, ours = after(lambda: Recurrent(buffer), None), after(lambda: Recurrent(buffer), SAM(rho=0.5))
    assert same(ours.hidden, plain.hidden)
    assert same(ours.starts.taken, [start for start in plain.starts.taken for _ in range(2)])


CHANGES: dict[str, Callable[[nn.Parameter, Tensor], Any]] = {
    "by .data =": lambda mine, other: setattr(mine, "data", 0.9 * mine.data + 0.1 * other),
    "in place": lambda mine, other: mine.mul_(0.9).add_(other, alpha=0.1),
    "by .data.mul_": lambda mine, other: mine.data.mul_(0.9).add_(other, alpha=0.1),
}


class MomentumEncoder(Body):
    """Follows the trained encoder by an average that every forward moves, outside the optimizer."""

    def __init__(self, change: Callable[..., Any]) -> None:
        super().__init__()
        self.follower = nn.Linear(6, 8).requires_grad_(False)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for mine, other in zip(self.follower.parameters(), self.first.parameters(), strict=True):
                self.change(mine, other.detach())
        return self.last(torch.tanh(self.first(x)) * self.follower(x))


@pytest.mark.parametrize("change", CHANGES)
def test_a_momentum_encoder_that_the_forward_moves(change: str) -> None:
    ends = []
    for method in (None, SAM(rho=0.5)):
        torch.manual_seed(0)
        model = MomentumEncoder(CHANGES[change])
        trained = [*model.first.parameters(), *model.last.parameters()]
        base = torch.optim.SGD(trained, lr=0.0)
        optimizer = base if method is None else method.wrap(base, model=model)
        for batch in make_batches(5):
            optimizer.step(Closure(model, optimizer, batch))
        ends.append(snapshot_of(model))
    assert same(*ends)


def snapshot_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


class Metric(nn.Module):
    """As a metric of torchmetrics is: a module whose states are a tensor and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.total, self.values = torch.zeros(()), []

    def update(self, h: Tensor) -> None:
        self.total = self.total + h.sum()
        self.values.append(h.mean())


class Measured(Body):
    def __init__(self) -> None:
        super().__init__()
        self.metric = Metric()

    def keep(self, h: Tensor) -> Tensor:
        self.metric.update(h.detach())
        return h


def test_a_metric_counts_a_batch_once() -> None:
    plain, ours = after(Measured, None), after(Measured, SAM(rho=0.5))
    assert same((ours.metric.total, ours.metric.values), (plain.metric.total, plain.metric.values))
    assert len(ours.metric.values) == 5


class Quantised(Body):
    """PyTorch's own fake quantisation for quantisation-aware training, which observes ranges in buffers."""

    def __init__(self) -> None:
        super().__init__()
        from torch.ao.quantization import get_default_qat_qconfig

        self.fake = get_default_qat_qconfig("fbgemm").activation()

    def keep(self, h: Tensor) -> Tensor:
        return self.fake(h)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_observers_of_quantisation_aware_training() -> None:
    plain, ours = after(Quantised, None), after(Quantised, SAM(rho=0.5))
    assert same(dict(ours.named_buffers()), dict(plain.named_buffers()))
    start = Quantised()
    assert not same(dict(ours.named_buffers()), dict(start.named_buffers()))
