from __future__ import annotations

from typing import Any

import pytest
import torch
from composer import Callback, Event, Trainer
from composer.algorithms import LabelSmoothing
from composer.loggers import LoggerDestination

from sam_algos import SAM
from sam_algos.recipes.run.engine import skip_unheard_events
from tests.trainer.training import loader, noisy_classifier


class Everything(Callback):
    def __init__(self, heard: list[Any]) -> None:
        self.heard = heard

    def run_event(self, event: Event, state: Any, logger: Any) -> None:
        self.heard.append(("everything", event))


class Batches(Callback):
    def __init__(self, heard: list[Any]) -> None:
        self.heard = heard

    def batch_end(self, state: Any, logger: Any) -> None:
        self.heard.append(("batches", Event.BATCH_END))


class Destination(LoggerDestination):
    def __init__(self, heard: list[Any]) -> None:
        self.heard = heard

    def batch_end(self, state: Any, logger: Any) -> None:
        self.heard.append(("destination", Event.BATCH_END))


def trained(*, skip: bool, everything: bool) -> tuple[list[Any], torch.Tensor]:
    heard: list[Any] = []
    model = noisy_classifier()
    trainer = Trainer(
        model=model, optimizers=torch.optim.SGD(model.parameters(), lr=0.1), train_dataloader=loader(),
        algorithms=[SAM(rho=0.1), LabelSmoothing(0.1)], max_duration="2ep", seed=3, progress_bar=False,
        loggers=[Destination(heard)], callbacks=[Batches(heard), *([Everything(heard)] if everything else [])],
    )  # fmt: skip
    heard.clear()
    if skip:
        skip_unheard_events(trainer.engine)
    trainer.fit()
    trainer.close()
    return heard, torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.filterwarnings("ignore:Some targets have less than 1 total probability")  # smoothed ones, by rounding
@pytest.mark.parametrize("everything", [False, True])
def test_callbacks_hear_the_same_events_in_the_same_order(everything: bool) -> None:
    (heard, weights), (expected, reference) = (trained(skip=skip, everything=everything) for skip in (True, False))
    assert heard == expected
    assert torch.equal(weights, reference)
