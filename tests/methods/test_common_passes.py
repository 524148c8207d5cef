"""Several passes must train as one: whatever counts batches counts one."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sam_algos import SAM, Method
from tests.cases import (
    Closure,
    Notes,
    each_ascent,
    make_batches,
    make_model,
    same,
    steps,
    watch,
    wrap,
)


class CountsCalls(nn.Module):
    """Keeps a buffer in place and replaces another, as quantisation observers and memory banks do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("latest", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.latest = x.detach().mean(0)
        return x


def between(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(6, 8), *copy.deepcopy(layers), nn.LayerNorm(8), nn.Linear(8, 3))


COUNTING: dict[str, Callable[[], nn.Module]] = {
    "batch norm": between(nn.BatchNorm1d(8)),
    "batch norm, cumulative": between(nn.BatchNorm1d(8, momentum=None)),
    "batch norm without statistics": between(nn.BatchNorm1d(8, track_running_stats=False)),
    "batch norm in evaluation mode": between(nn.BatchNorm1d(8).eval()),
    "instance norm": between(
        nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2, affine=True, track_running_stats=True), nn.Flatten()
    ),
    "spectral norm": between(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))),
    "spectral norm, old": between(nn.utils.spectral_norm(nn.Linear(8, 8))),
    "own buffers": between(CountsCalls()),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return COUNTING[name]()


@pytest.mark.usefixtures("without_looks")
@each_ascent
@pytest.mark.parametrize("name", COUNTING)
def test_buffers_are_those_of_the_first_pass_alone(method: Method, name: str) -> None:
    """It is at the clean weights, unless a step has one pass only and that is displaced."""
    ours, plain = build(name), build(name)
    optimizer, passes = wrap(method, ours), watch(ours)
    clean = nn.utils.parameters_to_vector(ours.parameters()).detach()
    [batch] = make_batches(1)
    optimizer.step(Closure(ours, optimizer, batch))
    assert torch.equal(passes[0].weights, clean) or len(passes) == 1
    nn.utils.vector_to_parameters(passes[0].weights, plain.parameters())
    plain(batch[0])
    assert same(dict(ours.named_buffers()), dict(plain.named_buffers()))


def counters(model: nn.Module) -> dict[str, Tensor]:
    return {name: b for name, b in model.named_buffers() if not b.is_floating_point()}


@pytest.mark.parametrize("error", [None, RuntimeError("in the second pass")], ids=["success", "error"])
@pytest.mark.parametrize("name", COUNTING)
def test_buffers_after_many_steps(name: str, error: Exception | None) -> None:
    """``num_batches_tracked`` and the like; and the modules are left as configured, even by an error."""
    model = build(name)
    optimizer = wrap(SAM(), model)
    flags = [getattr(m, "track_running_stats", None) for m in model.modules()]
    for batch in make_batches(5):
        before = torch.get_rng_state()
        closure = Closure(model, optimizer, batch)

        def failing(closure: Closure = closure) -> Tensor:
            loss = closure()
            if closure.calls == 2 and error:
                raise error
            return loss

        if error is None:
            optimizer.step(failing)
        else:
            with pytest.raises(RuntimeError, match="in the second pass"):
                optimizer.step(failing)
        assert closure.calls == 2
        assert torch.equal(torch.get_rng_state(), before)
    assert [getattr(m, "track_running_stats", None) for m in model.modules()] == flags
    plain = build(name)
    list(steps(plain, wrap(None, plain), make_batches(5)))
    assert same(counters(model), counters(plain))


def test_buffers_stay_the_same_tensors() -> None:
    """Broadcasts of buffers and exported graphs hold on to the objects."""
    model = make_model("batchnorm")
    optimizer = wrap(SAM(), model)
    before = [id(b) for b in model.buffers()]
    list(steps(model, optimizer, make_batches(2)))
    assert [id(b) for b in model.buffers()] == before


class Periodic(nn.Module):
    """Redraws its mask every third call, as Composer's GyroDropout: what it draws depends on a count."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.mask = torch.ones(8)
        self.used = Notes()

    def forward(self, x: Tensor) -> Tensor:
        if self.count % 3 == 0:
            self.mask = (torch.rand(8) > 0.5).float()
        self.count += 1
        self.used.taken.append(self.mask)
        return x * self.mask


@pytest.mark.parametrize("copied", [False, True])
def test_modules_that_count_their_calls_count_one(copied: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 8), Periodic(), nn.Linear(8, 3))
    optimizer = wrap(SAM(), model)
    list(steps(model, optimizer, make_batches(3)))
    if copied:
        model, optimizer = copy.deepcopy((model, optimizer))
    for done in range(4, 10):
        model[1].used.taken.clear()
        assert [*steps(model, optimizer, make_batches(1, seed=done))] == [2]
        assert torch.equal(*model[1].used.taken)
        assert model[1].count == done


def test_layers_added_during_training_count_one_too() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    optimizer = wrap(SAM(), model)
    list(steps(model, optimizer, make_batches(2)))
    model.insert(1, nn.BatchNorm1d(8))
    list(steps(model, optimizer, make_batches(3)))
    assert model[1].num_batches_tracked == 3
