"""Tiny runs of Composer's Trainer, and what the tests compare of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.core import Algorithm, Callback, Event, State
from composer.loggers import InMemoryLogger, Logger
from composer.models import ComposerClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sam_algos import METHODS, SAM, LateSAM, Method
from sam_algos.core.passes.selection import EVERYTHING, Selection

CLASSES = 3
BATCHES = 6
BATCH_SIZE = 4

_INSTANCES: dict[str, Method] = {name: cls() for name, cls in METHODS.items()}
_INSTANCES["latesam"] = LateSAM(start=0.5)  # a few steps have no last tenth, and a method that never acts warns
_INSTANCES |= {"sam, a narrow ascent": SAM(ascent_fraction=0.5), "sam, two ascents": SAM(steps=2)}
_KINDS = ("sam", "aelooksam", "friendlysam", "momentumsam", "esam", "sam, a narrow ascent")


def passes(method: Method) -> int:
    """How many passes a sharp step of a method takes, those without a gradient among them."""
    parts = method.composition()
    if not parts.perturbation.own_pass:
        return 1
    return 1 + getattr(method, "steps", 1) + int(parts.reader("reads_losses") is not None)


EVERY_METHOD = [pytest.param(method, id=name) for name, method in _INSTANCES.items()]
"""Every method with its defaults: instances serve any number of runs."""

EVERY_KIND = [pytest.param(_INSTANCES[name], id=name) for name in _KINDS]
"""One for each way to reach the Trainer: what is remembered, and which passes are run on which samples."""

EVERY_KIND_ON_THE_WHOLE_BATCH = [case for case in EVERY_KIND if case.values[0].ascent_fraction == 1]

EVERY_PASS = [
    pytest.param(case.values[0], number, id=f"{case.id}, pass {number}")
    for case in EVERY_METHOD
    for number in range(1, passes(case.values[0]) + 1)
]
"""Every method, and the number of every pass of its sharp steps."""

EVERY_PASS_OF_EVERY_KIND = [case for case in EVERY_PASS if case.id.rpartition(", ")[0] in _KINDS]


def sgd(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01)


def adamw(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


def classifier(*layers: nn.Module, seed: int = 0) -> ComposerClassifier:
    """An MLP: ``layers`` between two linear ones, and a normalisation that knows no batch."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 8), *layers, nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, CLASSES))
    return ComposerClassifier(net, num_classes=CLASSES)


def noisy_classifier() -> ComposerClassifier:
    """With running statistics and with randomness in its forward pass."""
    return classifier(nn.BatchNorm1d(8), nn.Dropout(0.3))


def loader(batch_size: int = BATCH_SIZE, batches: int = BATCHES, **options: Any) -> DataLoader:
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(batch_size * batches, 6, generator=draws)
    y = torch.randint(0, CLASSES, (batch_size * batches,), generator=draws)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, **options)


def trainer(
    *algorithms: Algorithm | None,
    model: nn.Module | None = None,
    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] = sgd,
    data: Any = None,
    **options: Any,
) -> Trainer:
    """A Trainer on the CPU for two epochs of six batches, unless ``options`` say otherwise."""
    model = noisy_classifier() if model is None else model
    settings: dict[str, Any] = {
        "max_duration": "2ep",
        "seed": 3,
        "device": "cpu",
        "progress_bar": False,
    } | options
    return Trainer(
        model=model,
        optimizers=optimizer(model.parameters()),
        train_dataloader=loader() if data is None else data,
        algorithms=[a for a in algorithms if a is not None],
        **settings,
    )


def fit(*algorithms: Algorithm | None, **options: Any) -> Trainer:
    """Make a Trainer and train."""
    run = trainer(*algorithms, **options)
    run.fit()
    run.close()
    return run


def by_hand(
    method: Method, model: nn.Module | None = None, before_step: Callable[[nn.Module], None] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """The same two epochs without Composer; ``before_step`` acts when the base optimizer steps.

    The random stream is seeded at the start of each epoch, as `seeded_epochs` does under Composer.
    """
    model = noisy_classifier() if model is None else model
    base = sgd(model.parameters())
    if before_step is not None:
        base.register_step_pre_hook(lambda *_: before_step(model))
    optimizer = method.wrap(base, model=model, total_steps=2 * BATCHES)
    data, each = loader(), method.composition().reader("reads_losses") is not None
    for _ in range(2):
        torch.manual_seed(11)
        for batch in data:

            def closure(samples: Selection = EVERYTHING, batch: Any = batch) -> Tensor:
                optimizer.zero_grad()
                batch = samples(batch)
                outputs = model(batch)
                loss = model.loss(outputs, batch)
                if torch.is_grad_enabled():
                    loss.backward()
                return model.loss(outputs, batch, reduction="none") if each else loss

            optimizer.step(closure)
    return dict(model.state_dict()), optimizer.state_dict(), optimizer.method_state_dict()


def outcome(run: Trainer) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """All that a run of a method leaves behind."""
    return weights(run), optimizer_state(run), memory(run)


def weights(run: Trainer | State) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    state = run.state if isinstance(run, Trainer) else run
    return {name: value.detach().clone() for name, value in state.model.state_dict().items()}


def optimizer_state(run: Trainer) -> dict[str, Any]:
    return run.state.optimizers[0].state_dict()


def memory(run: Trainer) -> dict[str, Any]:
    """What the method of a run remembers."""
    return run.state.optimizers[0].method_state_dict()


def same(a: Any, b: Any) -> bool:
    """Whether two nestings of tensors and numbers are equal to the last bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of weights are equal but for the order of summation."""
    return a.keys() == b.keys() and all(torch.allclose(a[key], b[key], rtol=1e-4, atol=1e-6) for key in a)


def logged(run: Trainer, name: str) -> list[float]:
    """The values of a metric in a run that was given an ``InMemoryLogger``."""
    memory_logger = next(d for d in run.logger.destinations if isinstance(d, InMemoryLogger))
    return [float(value) for _, value in memory_logger.data.get(name, [])]


class On(Callback):
    """Calls ``act`` with the State at one event."""

    def __init__(self, event: Event, act: Callable[[State], Any]) -> None:
        self._event, self._act = event, act

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        if event == self._event:
            self._act(state)


def seeded_epochs() -> Callback:
    return On(Event.EPOCH_START, lambda _: torch.manual_seed(11))


class AlgorithmOn(Algorithm):
    """Calls ``act`` with the State at one event, in both passes where that event is in a pass."""

    def __init__(self, event: Event, act: Callable[[State], Any]) -> None:
        self._event, self._act = event, act

    def match(self, event: Event, state: State) -> bool:
        return event == self._event

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        self._act(state)
