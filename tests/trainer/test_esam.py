"""ESAM inside the Trainer: the losses of samples, and a gradient on some of them."""

from __future__ import annotations

from typing import Any

import composer.algorithms as ca
import pytest
import torch
from composer.core import Algorithm
from composer.models import ComposerClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sam_algos import ESAM
from tests.trainer.training import BATCHES, CLASSES, classifier, fit, loader, memory, same, trainer, weights


def _double() -> tuple[ComposerClassifier, DataLoader]:
    """A network that treats samples one by one, and its data, in float64."""
    x, y = loader().dataset.tensors
    return classifier().double(), DataLoader(TensorDataset(x.double(), y), batch_size=4)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("gamma", [0.25, 0.5, 0.75])
def test_the_samples_are_chosen_from_the_whole_batch_of_a_process(gamma: float, size: int) -> None:
    """With a quarter of four samples, all microbatches but one have nobody to run for."""
    method, (model, data), (other, _) = ESAM(gamma=gamma), _double(), _double()
    whole = weights(fit(method, model=model, data=data))
    parts = weights(fit(method, model=other, data=data, device_train_microbatch_size=size))
    assert all(torch.allclose(parts[name], whole[name], rtol=0, atol=1e-12) for name in whole)
    assert not same(whole, weights(fit(ESAM(gamma=1.0), model=_double()[0], data=data)))


def test_batchnorm_gets_company_for_a_sample_that_is_alone_in_its_microbatch() -> None:
    run = fit(ESAM(gamma=0.25), device_train_microbatch_size=2)
    assert memory(run)["step"] == 2 * BATCHES


class _Watched(ComposerClassifier):
    """Notes the samples of each pass, and for which the loss is to be that of each."""

    def __init__(self, module: nn.Module, seen: list[Any]) -> None:
        super().__init__(module, num_classes=CLASSES)
        self._note = seen.append

    def loss(self, outputs: Tensor, batch: Any, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().loss(outputs, batch, *args, **kwargs)
        self._note((bool(kwargs), batch[0].clone(), batch[1].clone(), loss.detach()))
        return loss


_SHARED = pytest.mark.filterwarnings("ignore:Some targets have less than 1 total probability")


@pytest.mark.usefixtures("without_looks")
@_SHARED
@pytest.mark.parametrize(
    "algorithm",
    [None, ca.MixUp(), ca.CutMix(), ca.LabelSmoothing(0.1)],
    ids=lambda algorithm: type(algorithm).__name__,
)
def test_the_chosen_samples_are_those_whose_loss_grows_most_as_they_were(algorithm: Algorithm | None) -> None:
    seen: list[Any] = []
    images = nn.Flatten(), *classifier().module
    x, y = loader(8, batches=3).dataset.tensors
    data = DataLoader(TensorDataset(x.reshape(-1, 1, 2, 3), y), batch_size=8)
    fit(ESAM(), algorithm, model=_Watched(nn.Sequential(*images), seen), data=data, max_duration="1ep")
    assert len(seen) == 3 * 4
    for step in range(0, len(seen), 4):
        clean, first, displaced, last = seen[step : step + 4]
        assert [kind for kind, *_ in (clean, first, displaced, last)] == [True, False, True, False]
        assert same(clean[1:3], first[1:3]) and same(clean[1:3], displaced[1:3])
        chosen = torch.sort(torch.topk(displaced[3] - clean[3], 4).indices).values
        assert same(last[1:3], (clean[1][chosen], clean[2][chosen]))


class _Reduces(ComposerClassifier):
    """Has a loss of its own, which knows no reduction."""

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(outputs, batch[1])


class _ComputesTheLossItself(ComposerClassifier):
    """As transformers do, whatever is asked for."""

    def loss(self, outputs: Tensor, batch: Any, *args: Any, **kwargs: Any) -> Tensor:
        return nn.functional.cross_entropy(outputs, batch[1])


@pytest.mark.parametrize(
    ("model", "algorithm", "error"),
    [
        (_Reduces, None, r"reduction='none'\) has to return a tensor .*unexpected keyword argument 'reduction'"),
        (_ComputesTheLossItself, None, r"reduction='none'\) has to return a tensor .* returned something else"),
        (
            ComposerClassifier,
            ca.MixUp(interpolate_loss=True),
            "an algorithm changed the loss .* interpolate the labels",
        ),
    ],
)
def test_a_loss_that_is_not_that_of_each_sample_is_refused_and_changes_nothing(
    model: Any, algorithm: Algorithm | None, error: str
) -> None:
    run = trainer(ESAM(), algorithm, model=model(classifier().module, num_classes=CLASSES))
    before, algorithms = weights(run), list(run.state.algorithms)
    with pytest.raises(ValueError, match=error):
        run.fit()
    assert same(weights(run), before)
    assert memory(run)["step"] == 0
    assert list(run.state.algorithms) == algorithms
    assert not {"loss", "eval_forward", "update_metric"} & vars(run.state.model).keys()


def test_with_all_samples_no_loss_of_each_is_needed() -> None:
    run = fit(ESAM(gamma=1.0), model=_Reduces(classifier().module, num_classes=CLASSES))
    assert memory(run)["step"] == 2 * BATCHES
