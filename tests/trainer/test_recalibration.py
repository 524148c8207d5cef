"""What is evaluated and saved last has recalibrated statistics, and training does not notice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.algorithms import EMA, SWA
from composer.core import Callback, DataSpec, Event, State
from composer.loggers import InMemoryLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from sam_algos import Method, MomentumSAM, recalibrate
from sam_algos.trainer import RecalibrateBatchNorm
from tests.trainer.training import (
    BATCHES,
    EVERY_KIND,
    On,
    classifier,
    fit,
    loader,
    logged,
    noisy_classifier,
    optimizer_state,
    same,
    trainer,
    weights,
)

METHOD = MomentumSAM(rho=0.5)
EVERY = RecalibrateBatchNorm(batches=4, evaluations="all")


class Evaluated(Callback):
    """What was evaluated: weights and statistics, each time."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def eval_batch_start(self, state: State, logger: Any) -> None:
        if state.eval_timestamp.batch == 0:
            self.seen.append(weights(state))


def statistics(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if "running" in name}


def parameters(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if "running" not in name and "tracked" not in name}


def expected(values: dict[str, Tensor], data: Any, batches: int = 4) -> dict[str, Tensor]:
    """The statistics of these weights over the first batches."""
    model = noisy_classifier()
    model.load_state_dict(values)
    recalibrate(model, [batch for _, batch in zip(range(batches), data, strict=False)], forward=lambda m, b: m(b))
    return statistics(dict(model.state_dict()))


def shuffled(**options: Any) -> DataLoader:
    """Shuffled by a generator of its own, which an iteration moves on."""
    dataset = loader().dataset
    sampler = RandomSampler(dataset, generator=torch.Generator().manual_seed(5))
    return DataLoader(dataset, batch_size=4, sampler=sampler, **options)


@pytest.mark.parametrize("interval", ["1ep", "2ba", "100ep"])
def test_the_last_evaluation_and_the_last_checkpoint_have_recalibrated_statistics(
    interval: str, tmp_path: Path
) -> None:
    seen, log = Evaluated(), InMemoryLogger()
    run = fit(
        METHOD,
        RecalibrateBatchNorm(batches=4),
        eval_dataloader=loader(),
        eval_interval=interval,
        callbacks=[seen],
        loggers=[log],
        save_folder=str(tmp_path),
        save_interval=interval,
    )
    final = weights(run)
    assert same(statistics(final), expected(final, loader()))
    assert same(seen.seen[-1], final)
    (last,) = tmp_path.glob("*ba12-rank0.pt")
    saved = torch.load(last, weights_only=False)["state"]["model"]
    assert same(saved, final)
    assert logged(run, "recalibration/forwards") == [4.0]


@pytest.mark.parametrize("duration", ["2ep", "9ba", "12ba"])
def test_the_end_of_fit_is_recalibrated_without_evaluation(duration: str) -> None:
    final = weights(fit(METHOD, RecalibrateBatchNorm(batches=4), max_duration=duration))
    assert same(statistics(final), expected(final, loader()))


@pytest.mark.parametrize("interval", ["1ep", "2ba"])
def test_every_evaluation_is_recalibrated_and_training_does_not_notice(interval: str) -> None:
    def train(*algorithms: Any, **options: Any) -> tuple[Any, list[dict[str, Tensor]]]:
        before_end: list[dict[str, Tensor]] = []
        watch = On(Event.BATCH_START, lambda state: before_end.append(weights(state)))
        options = {"eval_interval": interval, **options}
        return fit(METHOD, *algorithms, data=shuffled(), callbacks=[watch], **options), before_end

    plain, watched = train(eval_dataloader=loader())
    seen = Evaluated()
    run, rewatched = train(EVERY, eval_dataloader=loader(), loggers=[InMemoryLogger()])
    assert same(rewatched, watched)
    assert same(parameters(weights(run)), parameters(weights(plain)))
    assert same(optimizer_state(run), optimizer_state(plain))
    assert not same(statistics(weights(run)), statistics(weights(plain)))
    assert logged(run, "recalibration/forwards") == [4.0] * (2 if interval == "1ep" else 6)
    run = fit(METHOD, EVERY, eval_dataloader=loader(), eval_interval=interval, callbacks=[seen])
    for values in seen.seen:
        assert same(statistics(values), expected(values, loader()))


@pytest.mark.parametrize("method", EVERY_KIND)
def test_methods_of_several_passes_are_recalibrated_too(method: Method) -> None:
    """Whose last pass is a repetition, in which BatchNorm does not track."""
    run = fit(method, RecalibrateBatchNorm(batches=4), loggers=[InMemoryLogger()])
    assert logged(run, "recalibration/forwards") == [4.0]
    assert same(statistics(weights(run)), expected(weights(run), loader()))


def test_persistent_workers_go_on_with_the_epoch() -> None:
    data = {"num_workers": 1, "persistent_workers": True, "multiprocessing_context": "fork"}
    plain = fit(METHOD, data=shuffled(**data), eval_dataloader=loader(), eval_interval="2ba")
    run = fit(METHOD, EVERY, data=shuffled(**data), eval_dataloader=loader(), eval_interval="2ba")
    assert same(parameters(weights(run)), parameters(weights(plain)))


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"eval_dataloader": loader(), "eval_interval": "2ba", "save_interval": "4ba"}
    options["loggers"] = [InMemoryLogger()]  # a checkpoint knows of it
    whole = fit(METHOD, EVERY, save_folder=str(tmp_path), **options)
    resumed = fit(METHOD, EVERY, load_path=str(tmp_path / "ep0-ba4-rank0.pt"), **options)
    assert same(weights(resumed), weights(whole))
    assert same(optimizer_state(resumed), optimizer_state(whole))
    again = trainer(
        METHOD, EVERY, load_path=str(tmp_path / "ep1-ba12-rank0.pt"), **options | {"loggers": [InMemoryLogger()]}
    )
    again.eval()
    assert same(weights(again), weights(whole))
    assert logged(again, "recalibration/forwards") == []  # they are known to be recalibrated


def test_a_fit_that_goes_on_has_the_parameters_that_it_would_have_had() -> None:
    def twice(*algorithms: Any) -> Trainer:
        run = trainer(METHOD, *algorithms, max_duration="1ep")
        run.fit()
        run.fit(duration="1ep")
        return run

    run = twice(RecalibrateBatchNorm(batches=4))
    assert same(parameters(weights(run)), parameters(weights(twice())))
    assert same(statistics(weights(run)), expected(weights(run), loader()))


@pytest.mark.parametrize("evaluations", ["last", "all"])
@pytest.mark.parametrize("saves", [True, False])
def test_averaged_weights_are_recalibrated_where_they_are_evaluated(
    evaluations: Any, saves: bool, tmp_path: Path
) -> None:
    seen, options = Evaluated(), {"eval_dataloader": loader(), "save_folder": str(tmp_path) if saves else None}
    ema, recalibration = EMA(half_life="2ba"), RecalibrateBatchNorm(batches=4, evaluations=evaluations)
    run = fit(METHOD, recalibration, ema, callbacks=[seen], **options)
    plain_seen = Evaluated()
    fit(METHOD, EMA(half_life="2ba"), callbacks=[plain_seen], eval_dataloader=loader())
    for values, plain_values in zip(seen.seen, plain_seen.seen, strict=True):
        assert same(parameters(values), parameters(plain_values))
    assert same(statistics(seen.seen[-1]), expected(seen.seen[-1], loader()))
    assert same(statistics(seen.seen[0]), expected(seen.seen[0], loader())) == (evaluations == "all")
    if saves:  # then Composer leaves the averaged weights in the model
        assert same(weights(run), seen.seen[-1])
    assert same(statistics(weights(run)), expected(weights(run), loader()))


def test_what_swa_leaves_undone_is_done() -> None:
    with pytest.warns(UserWarning, match="SWA has known issues"):
        swa = SWA(swa_start="1ep", swa_end="2ep")
    seen = Evaluated()
    run = fit(swa, RecalibrateBatchNorm(batches=4), eval_dataloader=loader(), callbacks=[seen])
    assert same(seen.seen[-1], weights(run))
    assert same(statistics(weights(run)), expected(weights(run), loader()))


def test_frozen_layers_are_left_alone() -> None:
    def freeze(state: State) -> None:
        state.model.module[1].eval()

    model = classifier(nn.BatchNorm1d(8))
    run = fit(EVERY, model=model, eval_dataloader=loader(), callbacks=[On(Event.BEFORE_FORWARD, freeze)])
    assert torch.equal(run.state.model.module[1].running_mean, torch.zeros(8))


def test_an_evaluation_that_fails_leaves_training_its_statistics() -> None:
    def fail(state: State) -> None:
        if state.timestamp.epoch == 1 and failing:
            failing.clear()
            raise RuntimeError

    failing = [True]
    options: dict[str, Any] = {"eval_dataloader": loader(), "callbacks": [On(Event.EVAL_BATCH_START, fail)]}
    run = trainer(METHOD, EVERY, **options)
    watched: list[dict[str, Tensor]] = []
    watch = On(Event.BATCH_START, lambda state: watched.append(statistics(weights(state))))
    with pytest.raises(RuntimeError):
        run.fit()
    assert same(statistics(weights(run)), expected(weights(run), loader()))
    run.state.callbacks.append(watch)
    run.fit()
    fit(METHOD, eval_dataloader=loader(), callbacks=[watch])
    assert same(watched[0], watched[BATCHES + BATCHES])


def scaled(batch: Any) -> Any:
    return [3 * batch[0], batch[1]]


def shifted(batch: Any) -> Any:
    return [batch[0] + 1, batch[1]]


@pytest.mark.parametrize("given", [True, False])
def test_microbatches_and_transforms_are_those_of_a_dataspec(given: bool) -> None:
    spec = DataSpec(loader(), batch_transforms=shifted, microbatch_transforms=scaled)
    own = DataSpec(loader(), batch_transforms=shifted, microbatch_transforms=scaled) if given else None
    recalibration = RecalibrateBatchNorm(batches=2, dataloader=own)
    run = fit(recalibration, data=spec, device_train_microbatch_size=2)
    halves = [scaled([t[rows] for t in shifted(batch)]) for batch in loader() for rows in (slice(2), slice(2, 4))]
    assert same(statistics(weights(run)), expected(weights(run), halves, batches=4))


def test_transforms_of_evaluation_are_not_those_of_training() -> None:
    data = loader()
    run = fit(RecalibrateBatchNorm(batches=4), data=data, eval_dataloader=DataSpec(data, batch_transforms=scaled))
    assert same(statistics(weights(run)), expected(weights(run), loader()))


def test_a_dataloader_of_two_dataspecs_is_refused() -> None:
    data = loader()
    other = DataSpec(data, batch_transforms=shifted)
    with pytest.raises(ValueError, match="dataloader must be given where the train_dataloader belongs to 2 DataSpecs"):
        fit(RecalibrateBatchNorm(batches=4), data=DataSpec(data, batch_transforms=scaled))
    del other


def test_without_batchnorm_nothing_is_run() -> None:
    run = fit(EVERY, model=classifier(), eval_dataloader=loader(), loggers=[InMemoryLogger()])
    assert logged(run, "recalibration/forwards") == []


def test_one_instance_serves_two_trainers() -> None:
    once = RecalibrateBatchNorm(batches=4)
    first, second = fit(METHOD, once), fit(METHOD, once)
    assert same(weights(first), weights(second))
    assert once._done is None


@pytest.mark.parametrize("arguments", [{"batches": 0}, {"batches": 1.5}, {"evaluations": "some"}, {"dataloader": 3}])
def test_wrong_arguments_are_named(arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=rf"RecalibrateBatchNorm\({name}=.*{name} must be "):
        RecalibrateBatchNorm(**arguments)


def test_without_data_an_evaluation_says_so() -> None:
    run = trainer(EVERY, eval_dataloader=loader(), data=None)
    run.state.train_dataloader = None
    with pytest.raises(ValueError, match="dataloader must be given where the Trainer has no train_dataloader"):
        run.eval()


def test_more_batches_than_there_are_is_one_epoch() -> None:
    run = fit(METHOD, RecalibrateBatchNorm(), loggers=[InMemoryLogger()])
    assert logged(run, "recalibration/forwards") == [float(BATCHES)]
