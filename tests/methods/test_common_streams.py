"""All passes of a step draw the same random numbers, and the streams go on as without a method."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sam_algos import SAM, Method
from tests.cases import (
    Closure,
    Notes,
    each_kind_on_the_whole_batch,
    each_method,
    make_batches,
    make_model,
    same,
    second_pass,
    steps,
    wrap,
)


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
def test_all_passes_draw_the_same_and_streams_end_as_in_plain_training(method: Method) -> None:
    draws, passes, streams = noisy_run(method, 8)
    plain, _, plain_streams = noisy_run(None, 8)
    assert max(passes) >= second_pass(wrap(method, make_model("mlp")))
    # `set` leaves one draw of a step where both passes drew the same; each is the plain run's of that step.
    assert [list(set(step)) for step in draws] == plain
    assert [len(step) for step in draws] == passes
    assert same(streams, plain_streams)


@each_kind_on_the_whole_batch
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
