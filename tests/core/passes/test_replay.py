"""A later pass starts from what the first started from, and what it changes is undone."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import pytest
import torch
from torch import nn

from sam_algos.core.passes.modules import Keepers, ModuleState
from sam_algos.core.passes.replay import Replay


class Keeps(nn.Module):
    """Everything that is put back, changed by each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("buffer", torch.zeros(2))
        self.number, self.items, self.table = 0, [0], {"n": 0}
        self.stream = random.Random(1)

    def forward(self, x: torch.Tensor) -> tuple[Any, ...]:
        self.norm(x)
        self.buffer += 1
        self.number += 1
        self.items.append(self.number)
        self.table["n"] += 1
        return self.stream.random(), random.random(), float(torch.rand(())), self.number

    def state(self) -> Any:
        kept = {name: b.clone() for name, b in self.named_buffers()}
        return copy.deepcopy((self.number, self.items, self.table, self.stream.getstate())), kept


def run(model: Keeps, replay: Replay, times: int) -> list[Any]:
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    replay.record(model, [])
    outcomes = [model(x)]
    for _ in range(times - 1):
        with replay.again():
            outcomes.append(model(x * 2))
    replay.forget()
    return outcomes


@pytest.mark.parametrize("times", [1, 2, 4])
def test_repetitions_start_alike_and_leave_no_trace(times: int) -> None:
    ends = []
    for count in (1, times):
        random.seed(3), torch.manual_seed(3)
        model, replay = Keeps(), Replay()
        for step in range(3):
            outcomes = run(model, replay, count)
            assert outcomes == [outcomes[0]] * count
            assert model.number == step + 1
        (kept, buffers), streams = model.state(), (random.getstate(), torch.get_rng_state())
        ends.append((kept, buffers, streams))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(a, b) for a, b in zip(ends[0][1].values(), ends[1][1].values(), strict=True))
    assert ends[0][2][0] == ends[1][2][0]
    assert torch.equal(ends[0][2][1], ends[1][2][1])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_a_repetition_leaves_no_trace_either(error: type[BaseException]) -> None:
    model, replay = Keeps(), Replay()
    run(model, replay, 2)
    replay.record(model, [])
    model(torch.ones(4, 2))
    after, objects = model.state(), (id(model.items), id(model.buffer), model.norm.track_running_stats)
    with pytest.raises(error), replay.again():
        model(torch.ones(4, 2))
        raise error
    assert after[0] == model.state()[0]
    assert all(torch.equal(b, model.state()[1][name]) for name, b in after[1].items())
    assert (id(model.items), id(model.buffer), model.norm.track_running_stats) == objects


def test_a_batch_that_the_first_pass_transformed_in_place_is_put_back() -> None:
    replay, batch = Replay(), {"x": torch.ones(3), "y": (torch.zeros(2),)}
    replay.record(nn.Linear(1, 1), [], batch)
    batch["x"].mul_(5)
    with replay.again():
        assert torch.equal(batch["x"], torch.ones(3))
        batch["x"].mul_(5)
    assert torch.equal(batch["x"], torch.full((3,), 5.0))


def test_only_the_models_own_kinds_of_state_are_taken() -> None:
    """Attributes of PyTorch's layers never change in a forward pass and cost nothing."""
    keepers = Keepers()
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), Keeps())
    keepers.look(model)
    assert keepers.fresh
    assert len(keepers.norms) == 2
    assert [set(owner) - but for owner, but in keepers.buffers] == [{"buffer"}]
    assert [owner is vars(model[2]) for owner in keepers.attributes] == [True]
    keepers.look(model)
    assert not keepers.fresh
    model.append(nn.Linear(2, 2))
    keepers.look(model)
    assert keepers.fresh


def test_a_snapshot_puts_back_objects_and_what_they_held() -> None:
    model, keepers = Keeps(), Keepers()
    keepers.look(model)
    items, state = model.items, ModuleState(keepers, [], set())
    model.items, model.number, model.extra = [9], 9, "new"
    items.append(7)
    model.buffer = torch.full((2,), 9.0)
    state.restore()
    assert model.items is items
    assert (model.items, model.number, hasattr(model, "extra")) == ([0], 0, False)
    assert torch.equal(model.buffer, torch.zeros(2))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_remembers_nothing_of_the_originals_model(duplicate: Any) -> None:
    model, replay = Keeps(), Replay()
    run(model, replay, 2)
    twin = duplicate(replay)
    assert getattr(twin, "_model", None) is None
    outcomes = run(Keeps(), twin, 2)
    assert outcomes[0] == outcomes[1]
