"""In the Trainer, too, a pass that does not see the displaced weights is refused, and looking leaves no trace."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from composer.core import Event, State
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from torch import Tensor, nn

from sam_algos import SAM, LookSAM, Method
from sam_algos.core.objective.sight import Sight
from tests.cases import Notes
from tests.trainer.training import EVERY_KIND, On, fit, logged, noisy_classifier, outcome, same, trainer, weights

METHODS = pytest.mark.parametrize("method", [SAM(), LookSAM(k=2), SAM(steps=2)], ids=str)


class RemembersBatches(nn.Module):
    """Computes the features of a batch once, and keeps them where the repetition of a pass does not put them back."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.known = first, Notes()

    def forward(self, x: Tensor) -> Tensor:
        if not self.known.taken or not torch.equal(self.known.taken[-1][0], x):
            self.known.taken.append((x, self.first(x)))
        return self.known.taken[-1][1]


@METHODS
@pytest.mark.parametrize("layers", [1, 2], ids=["no weight saved", "weights saved"])
def test_features_of_the_batch_from_another_pass_are_refused(method: Method, layers: int) -> None:
    torch.manual_seed(0)
    first = nn.Sequential(*(nn.Linear(6, 6) for _ in range(layers)))
    network = nn.Sequential(RemembersBatches(first), nn.Linear(6, 3))
    run = trainer(method, model=ComposerClassifier(network, num_classes=3))
    seen: list[Any] = []
    run.state.callbacks.append(On(Event.BATCH_START, lambda state: seen.append(weights(state))))
    with pytest.raises(RuntimeError, match=r"The closure .* inside forward and loss"):
        run.fit()
    assert same(weights(run), seen[-1])


def note(events: list[Event], event: Event, state: State) -> None:
    events.append(event)


@pytest.mark.parametrize("method", EVERY_KIND)
def test_a_look_leaves_no_trace(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in weights, statistics, state and memory, nor in metrics, losses and what callbacks see."""
    ends = []
    for looks in (True, False):
        if not looks:
            monkeypatch.setattr(Sight, "needs_look", lambda *_: False)
        events: list[Event] = []
        callbacks = [On(event, partial(note, events, event)) for event in Event]
        run = fit(method, model=noisy_classifier(), loggers=[InMemoryLogger()], callbacks=callbacks)
        names = ("loss/train/total", "metrics/train/MulticlassAccuracy", "sam/gradients", "sam/applied")
        ends.append((outcome(run), [logged(run, name) for name in names], events, torch.get_rng_state()))
    assert same(*ends)
