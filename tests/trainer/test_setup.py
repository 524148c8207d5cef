"""What a run accepts, and that runs do not share anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.algorithms import SAM as ComposerSAM
from composer.core import Event, State
from composer.loggers import Logger

from sam_algos import ESAM, SAM, LookSAM, Method, MomentumSAM
from sam_algos.trainer.algorithm import SharpnessAwareMemory
from tests.trainer.training import BATCHES, EVERY_KIND, classifier, fit, memory, outcome, same, sgd, trainer, weights


@pytest.mark.parametrize("method", EVERY_KIND)
def test_one_instance_serves_two_trainers_at_the_same_time(method: Method, tmp_path: Path) -> None:
    first, second = trainer(method), trainer(method)
    first.fit(duration="1ep")
    second.fit(duration="2ep")
    alone = fit(method, max_duration="1ep")
    assert same(outcome(first), outcome(alone))
    assert memory(second)["step"] == 2 * BATCHES
    saved = [torch.load(_save(run, tmp_path), weights_only=False)["state"] for run in (first, second)]
    assert [dict(state["algorithms"])["SharpnessAwareMemory"]["memory"]["step"] for state in saved] == [6, 12]
    first.close()
    second.close()


def _save(run: Trainer, folder: Path) -> str:
    return run.save_checkpoint(str(folder / f"{id(run)}.pt"))


def test_a_run_has_the_method_that_it_was_given() -> None:
    method = SAM()
    run = fit(method, max_duration="2ba")
    own, kept = run.state.algorithms
    assert own == method
    assert own is not method
    assert type(kept) is SharpnessAwareMemory


@pytest.mark.parametrize("other", [SAM(rho=0.1), LookSAM()], ids=repr)
def test_two_methods_are_refused(other: Method) -> None:
    with pytest.raises(ValueError, match="a run takes one sharpness-aware method; this one also has"):
        trainer(SAM(), other)


@pytest.mark.filterwarnings("ignore:SAM has known issues")
@pytest.mark.parametrize("ours_first", [True, False])
def test_composers_sam_beside_a_method_is_refused(ours_first: bool) -> None:
    pair = [LookSAM(), ComposerSAM()]
    with pytest.raises(ValueError, match="LookSAM: a run takes one sharpness-aware method"):
        trainer(*(pair if ours_first else pair[::-1]))


def test_two_optimizers_are_refused() -> None:
    """Composer's Trainer refuses them itself; a State may have them."""
    model: Any = classifier()
    optimizers = [sgd(model.parameters()), sgd(model.parameters())]
    state = State(model, rank_zero_seed=0, run_name="two", device=None, optimizers=optimizers)
    with pytest.raises(ValueError, match="a run takes one optimizer; this one has 2"):
        SAM().apply(Event.INIT, state, Logger(state))


def test_an_optimizer_that_is_already_wrapped_is_refused() -> None:
    model = classifier()
    wrapped = SAM().wrap(sgd(model.parameters()), model=model, total_steps=1)
    with pytest.raises(ValueError, match="already sharpness-aware"):
        trainer(SAM(), model=model, optimizer=lambda _: wrapped)


@pytest.mark.parametrize("method", [SAM(), ESAM(), MomentumSAM()], ids=repr)
def test_a_wrapped_optimizer_without_the_algorithm_is_refused_at_the_first_step(method: Method) -> None:
    model = classifier()
    wrapped = method.wrap(sgd(model.parameters()), model=model, total_steps=1)
    run = trainer(model=model, optimizer=lambda _: wrapped)
    before = weights(run)
    with pytest.raises(TypeError, match=r"algorithms=\[SAM\(\.\.\.\)\]"):
        run.fit()
    assert same(weights(run), before)
    assert wrapped.method_state_dict()["step"] == 0
