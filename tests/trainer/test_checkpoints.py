"""What a checkpoint contains, and which runs it may be loaded into."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.algorithms import SAM as ComposerSAM
from composer.core import Algorithm, Event
from composer.loggers import InMemoryLogger

import sam_algos
from sam_algos import AESAM, ESAM, SAM, FriendlySAM, LookSAM, Method, MomentumSAM
from tests.trainer.training import (
    BATCHES,
    EVERY_KIND,
    EVERY_METHOD,
    On,
    fit,
    logged,
    memory,
    optimizer_state,
    same,
    trainer,
    weights,
)

MOMENTUM = "momentum_buffer"

# Composer says so of an algorithm that the checkpoint does not have; of the optimizer it must not.
pytestmark = pytest.mark.filterwarnings("ignore:(?!SGD).* is not in the state_dict")


def _composer_sam() -> Algorithm:
    with pytest.warns(UserWarning, match="SAM has known issues"):
        return ComposerSAM()


def _checkpoint(run: Any, folder: Path, name: str = "end.pt") -> str:
    return run.save_checkpoint(str(folder / name))


def _loaded(path: str) -> dict[str, Any]:
    return torch.load(path, weights_only=False)["state"]


def _momenta(run: Any) -> list[torch.Tensor]:
    return [state[MOMENTUM].clone() for state in optimizer_state(run)["state"].values()]


METHODS = [case.values[0] for case in EVERY_METHOD if case.id in sam_algos.METHODS]
KINDS = [case.values[0] for case in EVERY_KIND if case.id in sam_algos.METHODS]
MOVES = [
    *((None, method) for method in KINDS),
    *((method, None) for method in KINDS),
    *zip(METHODS, METHODS[1:] + METHODS[:1], strict=True),
]


@pytest.mark.parametrize(("before", "after"), MOVES, ids=lambda method: type(method).__name__)
def test_a_checkpoint_moves_between_methods_and_plain_training(
    before: Method | None, after: Method | None, tmp_path: Path
) -> None:
    first = fit(before, max_duration="1ep")
    second = trainer(after, load_path=_checkpoint(first, tmp_path))
    assert same(weights(second), weights(first))
    assert same(_momenta(second), _momenta(first))
    second.fit()
    second.close()
    assert second.state.timestamp.batch == 2 * BATCHES


@pytest.mark.parametrize("method", EVERY_KIND)
def test_a_checkpoint_of_composers_sam_gives_its_weights_and_no_momentum_unasked(
    method: Method, tmp_path: Path
) -> None:
    first = fit(_composer_sam(), max_duration="1ep")
    path = _checkpoint(first, tmp_path)
    assert all(MOMENTUM not in entry for entry in _loaded(path)["optimizers"]["SAMOptimizer"]["state"].values())
    why = rf"{type(method).__name__}: this checkpoint .* momentum.*load_ignore_keys=\[.state/optimizers.\]"
    with pytest.raises(ValueError, match=why):
        trainer(method, load_path=path)
    assert same(weights(trainer(method, load_path=path, load_weights_only=True)), weights(first))
    second = trainer(method, load_path=path, load_ignore_keys=["state/optimizers"])
    assert same(weights(second), weights(first))
    assert memory(second) == memory(trainer(method))
    second.fit()
    second.close()


@pytest.mark.parametrize("method", EVERY_KIND)
def test_composers_sam_takes_over(method: Method, tmp_path: Path) -> None:
    first = fit(method, max_duration="1ep")
    resumed = fit(_composer_sam(), load_path=_checkpoint(first, tmp_path))
    assert resumed.state.timestamp.batch == 2 * BATCHES


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_the_checkpoint_names_the_method_and_can_make_it_again(method: Method, tmp_path: Path) -> None:
    run = fit(method, max_duration="1ep")
    (name, state), (kept, remembered) = _loaded(_checkpoint(run, tmp_path))["algorithms"]
    assert (name, kept) == (type(method).__name__, "SharpnessAwareMemory")
    assert eval(state["repr"], vars(sam_algos) | {name: getattr(sam_algos, name)}) == method
    assert remembered["memory"] == memory(run)


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_our_entries_load_with_weights_only(method: Method, tmp_path: Path) -> None:
    state = _loaded(_checkpoint(fit(method, max_duration="1ep"), tmp_path))
    ours = {key: state[key] for key in ("algorithms", "optimizers")}
    assert list(ours["optimizers"]) == ["SGD"]
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    assert same(torch.load(file, weights_only=True), ours)


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_tensor_bytes, value.values()))
    return sum(map(_tensor_bytes, value)) if isinstance(value, (list, tuple)) else 0


def _size(method: Method | None, folder: Path) -> int:
    return _tensor_bytes(_loaded(_checkpoint(fit(method, max_duration="1ep"), folder, f"{method!r}.pt")))


@pytest.mark.parametrize("method", EVERY_KIND)
def test_a_method_adds_to_the_checkpoint_its_buffers_and_nothing_else(method: Method, tmp_path: Path) -> None:
    parameters = sum(p.nbytes for p in trainer().state.model.parameters())
    buffers = len(method.composition().buffers())
    assert _size(method, tmp_path) == _size(None, tmp_path) + buffers * parameters


CHANGES = [(AESAM(), SAM()), (AESAM(), LookSAM(k=2)), (FriendlySAM(), AESAM()), (MomentumSAM(), ESAM())]


@pytest.mark.parametrize(("before", "after"), CHANGES, ids=lambda method: type(method).__name__)
def test_the_counters_are_those_of_the_run_and_survive_a_change_of_method(
    before: Method, after: Method, tmp_path: Path
) -> None:
    first = fit(before, max_duration="1ep")
    second = trainer(after, load_path=_checkpoint(first, tmp_path), loggers=InMemoryLogger())
    assert [memory(second)[name] for name in ("step", "sharp")] == [memory(first)[name] for name in ("step", "sharp")]
    assert memory(second)["policy"] == memory(trainer(after))["policy"], "what only the other method knows is left"
    second.fit()
    second.close()
    applied = logged(second, "sam/applied")
    assert memory(second)["step"] == 2 * BATCHES
    assert memory(second)["sharp"] == memory(first)["sharp"] + sum(applied)
    assert logged(second, "sam/fraction")[-1] == memory(second)["sharp"] / (2 * BATCHES)


@pytest.mark.parametrize("method", [AESAM(), FriendlySAM()], ids=lambda method: type(method).__name__)
def test_plain_training_in_between_starts_a_method_afresh(method: Method, tmp_path: Path) -> None:
    first = fit(method, max_duration="1ep")
    plain = fit(load_path=_checkpoint(first, tmp_path, "1.pt"), max_duration="9ba")
    again = trainer(method, load_path=_checkpoint(plain, tmp_path, "2.pt"))
    assert same(weights(again), weights(plain))
    assert memory(again) == memory(trainer(method))
    again.fit()
    again.close()
    assert memory(again)["step"] == 3


@pytest.mark.parametrize("method", EVERY_KIND)
def test_checkpoints_within_training_hold_the_clean_weights(method: Method, tmp_path: Path) -> None:
    clean: dict[int, Any] = {}
    keep = On(Event.BATCH_END, lambda state: clean.__setitem__(state.timestamp.batch.value, weights(state)))
    fit(
        method,
        callbacks=keep,
        save_folder=str(tmp_path),
        save_interval="1ba",
        save_filename="{batch}.pt",
        max_duration="1ep",
    )
    for batch in range(1, BATCHES + 1):
        assert same(_loaded(str(tmp_path / f"{batch}.pt"))["model"], clean[batch])
