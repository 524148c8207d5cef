"""In the Trainer: a method that never acts says so, a class is no algorithm, and a group's own radius is kept."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import Tensor

from sam_algos import SAM, LateSAM, Method, Perturbation, SharpnessAware
from sam_algos.core.objective.view import Step
from sam_algos.core.parts import Ascent
from sam_algos.trainer import RecalibrateBatchNorm
from tests.cases import watch
from tests.trainer.training import classifier, fit, loader, sgd, trainer


class StopsAfterAnEpoch(Algorithm):
    def match(self, event: Event, state: State) -> bool:
        return event == Event.EPOCH_END

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        state.stop_training()


class Nowhere(Perturbation):
    def ascend(self, step: Step) -> Ascent | None:
        return None


def test_a_start_that_was_never_reached_warns_at_the_end_of_fit() -> None:
    with pytest.warns(UserWarning, match=r"None of 6 steps .* Late\(start=0.9\) asked for none, the last at 42% of"):
        fit(LateSAM(), StopsAfterAnEpoch())


@pytest.mark.parametrize("method", [LateSAM(), LateSAM(start=1.0), SAM(rho=0.0), SAM()], ids=repr)
def test_one_that_was_reached_or_was_never_to_be_is_not(method: Method) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="None of")
        fit(method)


def test_an_epoch_of_steps_without_a_direction_is_told_during_training() -> None:
    method = SharpnessAware(perturbation=Nowhere())
    run = trainer(method, data=loader(batches=12), max_duration="12ba")
    with pytest.warns(UserWarning, match=r"12 steps in a row .*Nowhere\(rho=0.05\)") as found:
        run.fit()
    assert sum("sharpness-aware" in str(w.message) for w in found) == 1


@pytest.mark.parametrize("algorithm", [SAM, LateSAM, RecalibrateBatchNorm])
def test_a_class_in_place_of_an_algorithm_is_answered_with_an_instance(algorithm: Any) -> None:
    name = algorithm.__name__
    with pytest.raises(TypeError, match=rf"algorithms=\[{name}\] is a class.*algorithms=\[{name}\(\)\]"):
        trainer(algorithm)


def still_in_part(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    first, *rest = parameters
    return torch.optim.SGD([{"params": [first], "rho": 0.0}, {"params": rest}], lr=0.1, momentum=0.9)


def in_part(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    first, *rest = parameters
    return torch.optim.SGD([{"params": [first]}, {"params": rest}], lr=0.1, momentum=0.9)


@pytest.mark.filterwarnings("ignore:SAM is not in the state_dict:UserWarning")
@pytest.mark.filterwarnings("ignore:SharpnessAwareMemory is not in the state_dict:UserWarning")
def test_a_groups_own_radius_survives_the_checkpoint_of_plain_training(tmp_path: Path) -> None:
    plain = fit(model=classifier(), optimizer=in_part, max_duration="1ep")
    path = plain.save_checkpoint(str(tmp_path / "plain.pt"))
    model = classifier()
    run = trainer(SAM(rho=0.5), model=model, optimizer=still_in_part, load_path=path)
    seen = watch(model.module)
    run.fit()
    first = next(model.parameters()).numel()
    displaced = [b.weights - a.weights for a, b in zip(seen[::2], seen[1::2], strict=True)]
    assert not any(bool(d[:first].any()) for d in displaced)
    assert all(bool(d[first:].any()) for d in displaced)


def test_a_radius_of_zero_is_plain_training() -> None:
    ends = []
    for method in (SAM(rho=0.0), None):
        run = fit(method, optimizer=sgd)
        ends.append(run.state.model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
