"""Two passes must train as one: same random draws in both, and whatever counts batches counts one."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sam_algos import SAM, Method
from tests.cases import (
    Closure,
    Notes,
    each_method,
    each_method_on_the_whole_batch,
    make_batches,
    make_model,
    same,
    second_pass,
    steps,
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


def first_step(method: Method | None, name: str) -> nn.Module:
    torch.manual_seed(0)
    model = build(name)
    optimizer = wrap(method, model)
    list(steps(model, optimizer, make_batches(1)))
    return model


@each_method_on_the_whole_batch
@pytest.mark.parametrize("name", COUNTING)
def test_buffers_are_those_of_one_pass_at_the_clean_weights(method: Method, name: str) -> None:
    plain, ours = first_step(None, name), first_step(method, name)
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


class Noise(nn.Module):
    """Draws from every random stream that data augmentation and regularisation use."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = Notes()

    def forward(self, x: Tensor) -> Tensor:
        draw = (random.random(), float(np.random.rand()), float(torch.rand(())))
        self.drawn.taken.append(draw)
        return x * (1 + 0.1 * sum(draw))


def noisy_run(method: Method | None, count: int) -> tuple[list[list[tuple]], list[int], tuple]:
    """The draws of each step, its passes, and the state of the streams afterwards."""
    torch.manual_seed(0)
    noise = Noise()
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), noise, nn.Dropout(0.5), nn.Linear(8, 3))
    optimizer = wrap(method, model)
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    draws, passes = [], []
    for taken in steps(model, optimizer, make_batches(count)):
        draws.append(list(noise.drawn.taken))
        passes.append(taken)
        noise.drawn.taken.clear()
    kind, keys, *rest = np.random.get_state()
    return draws, passes, (torch.get_rng_state(), random.getstate(), kind, torch.tensor(keys.tolist()), rest)


@each_method
def test_both_passes_draw_the_same_and_the_streams_go_on_as_without_a_method(method: Method) -> None:
    draws, passes, streams = noisy_run(method, 8)
    plain, _, plain_streams = noisy_run(None, 8)
    assert max(passes) >= second_pass(wrap(method, make_model("mlp")))
    # `set` leaves one draw of a step where both passes drew the same; each is the plain run's of that step.
    assert [list(set(step)) for step in draws] == plain
    assert [len(step) for step in draws] == passes
    assert same(streams, plain_streams)


@each_method_on_the_whole_batch
def test_both_passes_drop_the_same_units(method: Method) -> None:
    model = make_model("dropout")
    optimizer = wrap(method, model)
    masks: list[Tensor] = []
    model[-2].register_forward_hook(lambda module, args, out: masks.append(out == 0))
    repeated = 0
    for taken in steps(model, optimizer, make_batches(8)):
        assert len(masks) == taken
        # A pass on some of the samples draws others.
        assert all(torch.equal(mask, masks[0]) for mask in masks if len(mask) == len(masks[0]))
        assert masks[0].any()
        assert not masks[0].all()
        repeated += taken >= second_pass(optimizer)
        masks.clear()
    assert repeated


class Hasty(Noise):
    """Draws more in its second pass than in its first, as code that depends on the weights may."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(len(self.drawn.taken)):
            random.random(), np.random.rand(), torch.rand(())
        return super().forward(x)


def test_streams_go_on_from_the_first_pass_whatever_the_second_draws() -> None:
    torch.manual_seed(0)
    noise = Hasty()
    model = nn.Sequential(nn.Linear(6, 8), noise, nn.Linear(8, 3))
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    for taken in steps(model, wrap(SAM(), model), make_batches(3)):
        assert taken == len(noise.drawn.taken) == 2
        noise.drawn.taken.clear()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    for _ in range(3):
        random.random(), np.random.rand(), torch.rand(())
    expected = (random.random(), np.random.rand(), float(torch.rand(())))
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    for _ in steps(model, wrap(SAM(), model), make_batches(3)):
        noise.drawn.taken.clear()
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected


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


@pytest.mark.gpu
def test_both_passes_draw_the_same_on_a_gpu() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.4), nn.Linear(16, 3)).cuda()
    optimizer = wrap(SAM(), model)
    masks: list[Tensor] = []
    model[1].register_forward_hook(lambda module, args, out: masks.append(out == 0))
    for x, y in make_batches(8):
        optimizer.step(Closure(model, optimizer, (x.cuda(), y.cuda())))
        assert all(torch.equal(mask, masks[0]) for mask in masks)
        masks.clear()
