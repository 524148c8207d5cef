"""An ascent on a share of each microbatch, inside the Trainer: see also the column in `tests.trainer.matrix`."""

from __future__ import annotations

import functools
from typing import Any

import composer.algorithms as ca
import pytest
import torch
from composer.core import Algorithm, Event, State
from composer.loggers import InMemoryLogger, Logger
from composer.models import ComposerClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric

from sam_algos import ASAM, SAM, Method
from tests.trainer.training import AlgorithmOn, by_hand, classifier, fit, loader, logged, same, trainer, weights

HALF = SAM(ascent_fraction=0.5)


class Spy:
    """Notes what a model's forward and its loss are given, pass after pass."""

    def __init__(self, model: ComposerClassifier) -> None:
        self.inputs: list[Tensor] = []
        self.labels: list[list[Tensor]] = []
        self.losses: list[float] = []
        model.module.register_forward_pre_hook(lambda _, args: self._begin(args[0]))
        vars(model)["loss"] = functools.partial(self._loss, model.loss)

    def _begin(self, x: Tensor) -> None:
        self.inputs.append(x.detach().clone())
        self.labels.append([])

    def _loss(self, loss: Any, outputs: Tensor, batch: Any, **options: Any) -> Tensor:
        assert len(outputs) == len(batch[0]) == len(batch[1])
        self.labels[-1].append(batch[1].clone())
        value = loss(outputs, batch, **options)
        self.losses.append(value.item())
        return value


@pytest.mark.parametrize("method", [HALF, ASAM(ascent_fraction=0.3), SAM(interval=2, ascent_fraction=0.5)], ids=str)
def test_the_trainer_takes_the_steps_of_a_hand_written_loop(method: Method) -> None:
    model = classifier(nn.BatchNorm1d(8))
    expected, _, memory = by_hand(method, classifier(nn.BatchNorm1d(8)))
    run = fit(method, model=model)
    assert same(weights(run), expected)
    assert memory["sharp"] > 0


@pytest.mark.usefixtures("without_looks")
def test_every_microbatch_is_narrowed() -> None:
    model, used = classifier(), SAM(ascent_fraction=0.5, interval=2)
    spy = Spy(model)
    fit(used, model=model, data=loader(8), device_train_microbatch_size=4, max_duration="2ba")
    assert [len(x) for x in spy.inputs] == [2, 2, 4, 4, 4, 4]


class Noise(nn.Module):
    """Draws as much as there are samples."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


@pytest.mark.usefixtures("without_looks")
@pytest.mark.filterwarnings("ignore:Some targets have less than 1 total probability")  # Composer's, by rounding
@pytest.mark.parametrize(
    "algorithms",
    [
        [lambda: ca.MixUp(interpolate_loss=False)],
        [lambda: ca.MixUp(interpolate_loss=True)],
        [lambda: ca.LabelSmoothing(0.1)],
        [lambda: ca.MixUp(interpolate_loss=False), lambda: ca.LabelSmoothing(0.1)],
        [lambda: ca.LabelSmoothing(0.1), lambda: ca.MixUp(interpolate_loss=False)],
    ],
    ids=["mixup", "mixup of losses", "label smoothing", "mixup, label smoothing", "label smoothing, mixup"],
)
@pytest.mark.parametrize("layer", [nn.Identity, Noise])
def test_a_sample_has_one_input_and_one_label_in_both_passes(algorithms: list[Any], layer: type[nn.Module]) -> None:
    model = classifier(layer())
    spy = Spy(model)
    fit(*[make() for make in algorithms], HALF, model=model, data=loader(8), device_train_microbatch_size=4)
    assert len(spy.inputs) == 2 * 2 * 12
    for first in range(0, len(spy.inputs), 4):
        for few, every in ((first, first + 2), (first + 1, first + 3)):
            assert len(spy.inputs[few]) * 2 == len(spy.inputs[every])
            assert torch.equal(spy.inputs[few], spy.inputs[every][: len(spy.inputs[few])])
            assert same(spy.labels[few], [y[: len(y) // 2] for y in spy.labels[every]])


@pytest.mark.usefixtures("without_looks")
def test_algorithms_see_whole_microbatches_and_outputs_at_every_event() -> None:
    seen: list[tuple[int, int]] = []
    in_a_pass = [Event.BEFORE_FORWARD, Event.AFTER_FORWARD, Event.BEFORE_LOSS, Event.AFTER_LOSS, Event.AFTER_BACKWARD]

    def look(state: State) -> None:
        seen.append((len(state.batch[0]), len(state.outputs)))

    algorithms = [AlgorithmOn(event, look) for event in in_a_pass]
    settings = {"data": loader(8), "device_train_microbatch_size": 4, "max_duration": "1ba"}
    fit(*algorithms, HALF, model=classifier(), **settings)
    assert seen[0] == (4, 0), "nothing was run yet"
    assert seen[1:] == [(4, 4)] * (4 * len(in_a_pass) - 1)


class SwitchedOn(ca.MixUp):
    """Decides when the batch begins whether it will act."""

    active = False

    def match(self, event: Event, state: State) -> bool:
        return event == Event.BEFORE_TRAIN_BATCH or (self.active and super().match(event, state))

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if event == Event.BEFORE_TRAIN_BATCH:
            self.active = True
        else:
            super().apply(event, state, logger)


def test_an_algorithm_may_switch_itself_on_within_the_pass() -> None:
    fit(SwitchedOn(interpolate_loss=False), HALF, model=classifier(), max_duration="2ba")


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_a_failed_pass_leaves_the_batch_whole(failing: int) -> None:
    """In either microbatch of either pass."""
    model, passes = classifier(), []

    def fail(*_: Any) -> None:
        passes.append(1)
        if len(passes) == failing:
            raise ZeroDivisionError

    hook = model.register_forward_pre_hook(fail)
    run = trainer(HALF, model=model, data=loader(8), device_train_microbatch_size=4)
    with pytest.raises(ZeroDivisionError):
        run.fit()
    hook.remove()
    assert len(run.state.batch[0]) == 8


class CountsSamples(Metric):
    """How many samples it was given, and how often outputs and targets were not of as many."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("samples", torch.tensor(0))

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        assert len(outputs) == len(targets)
        self.samples += len(outputs)

    def compute(self) -> Tensor:
        return self.samples


@pytest.mark.parametrize(("method", "samples"), [(HALF, 12), (SAM(), 24), (SAM(ascent_fraction=0.5, interval=2), 18)])
def test_train_metrics_see_the_samples_of_the_first_pass(method: Method, samples: int) -> None:
    net = nn.Linear(6, 3)
    model = ComposerClassifier(net, num_classes=3, train_metrics=CountsSamples())
    run = fit(method, model=model, max_duration="1ep", loggers=InMemoryLogger())
    assert sum(logged(run, "metrics/train/CountsSamples")[:6]) == samples
    assert not {"eval_forward", "update_metric"} & vars(model).keys()


def test_a_method_of_the_models_own_instance_comes_back() -> None:
    model = classifier()
    kept = vars(model)["eval_forward"] = lambda batch, outputs=None: outputs
    fit(HALF, model=model, max_duration="1ba")
    assert vars(model)["eval_forward"] is kept


class Untidy(Algorithm):
    """Makes a batch whose tensors have different first dimensions."""

    def match(self, event: Event, state: State) -> bool:
        return event == Event.BEFORE_FORWARD

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        x, y = state.batch
        state.batch = (x, (y, torch.zeros(1)))


def test_a_batch_without_one_number_of_samples_is_refused_and_changes_nothing() -> None:
    model = classifier()
    model.loss = lambda outputs, batch: nn.functional.cross_entropy(outputs, batch[1][0])
    run = trainer(Untidy(), HALF, model=model)
    before = weights(run)
    algorithms = len(run.state.algorithms)
    with pytest.raises(ValueError, match=r"ascent_fraction < 1 need batches whose tensors agree .* 1 and 4 samples"):
        run.fit()
    assert same(weights(run), before)
    assert len(run.state.algorithms) == algorithms


class Texts(torch.utils.data.Dataset):
    """Mappings, as tokenised text is."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.full((6,), float(index)), "y": index % 3, "name": str(index)}


class OnMappings(ComposerClassifier):
    """Notes what it was given."""

    def get_metrics(self, is_train: bool = False) -> dict[str, Metric]:
        return {}

    def forward(self, batch: dict[str, Any]) -> Tensor:
        self.keep(list(batch["name"]))
        return self.module(batch["x"])

    def loss(self, outputs: Tensor, batch: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        return nn.functional.cross_entropy(outputs, batch["y"])


@pytest.mark.usefixtures("without_looks")
def test_mappings_and_lists_of_strings_are_narrowed() -> None:
    model = OnMappings(nn.Linear(6, 3), num_classes=3)
    names: list[list[str]] = []
    model.keep = names.append
    fit(HALF, model=model, data=DataLoader(Texts(), batch_size=4), max_duration="1ba")
    assert names == [["0", "1"], ["0", "1", "2", "3"]]


@pytest.mark.usefixtures("without_looks")
def test_loss_logged_is_that_of_the_samples_of_the_first_pass() -> None:
    model = classifier()
    spy = Spy(model)
    run = fit(HALF, model=model, loggers=InMemoryLogger())
    assert logged(run, "loss/train/total") == pytest.approx(spy.losses[::2], rel=1e-6)
