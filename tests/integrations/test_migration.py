"""docs/migration.md: each pair of snippets trains the same, and what differs differs as the page says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from sam_algos import ASAM, SAM
from tests.cases import same
from tests.integrations.page import blocks, loader, plain_network, run

COMPOSER, DAVDA = "From Composer's SAM", "From davda54/sam"
RATE = 0.1
SINGLE = 1e-7  # pytorch_optimizer takes norms in single precision

pytestmark = pytest.mark.filterwarnings("ignore")  # the other packages' own


def batches() -> DataLoader[Any]:
    x, y = loader().dataset.tensors  # pyright: ignore[reportAttributeAccessIssue]
    return DataLoader(TensorDataset(x.double(), y), batch_size=4)


def close(a: nn.Module, b: nn.Module, within: float = 1e-12) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=within)


def test_every_snippet_of_the_page_is_run_here() -> None:
    counts = {name: len(code) for name, code in blocks("migration").items() if code}
    assert counts == {COMPOSER: 2, "Checkpoints": 1, DAVDA: 2}


def composer_names(**more: Any) -> Any:
    classifier = pytest.importorskip("composer.models").ComposerClassifier
    model = classifier(plain_network().double(), num_classes=3)
    base = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    options = {"train_dataloader": batches(), "max_duration": "1ep", "progress_bar": False, "loggers": [], **more}
    return {"model": model, "base": base, "options": options}


def test_from_composers_sam() -> None:
    before, after = composer_names(), composer_names()
    run(COMPOSER, 0, "migration", **before)
    run(COMPOSER, 1, "migration", **after)
    close(before["model"], after["model"])


@pytest.fixture
def composers(tmp_path: Path) -> Iterator[tuple[Any, str]]:
    """A run under Composer's SAM, and its checkpoint."""
    first = run(COMPOSER, 0, "migration", **composer_names())
    yield first["model"], first["trainer"].save_checkpoint(str(tmp_path / "composers.pt"))


def test_a_checkpoint_of_composers_sam_is_refused_and_loads_as_the_page_says(composers: tuple[Any, str]) -> None:
    model, path = composers
    from composer import Trainer

    names = composer_names(load_path=path)
    with pytest.raises(
        ValueError, match=r"SAM: this checkpoint .* Composer's SAM.*load_ignore_keys=\[\"state/optimizers\"\]"
    ):
        Trainer(model=names["model"], optimizers=names["base"], algorithms=[SAM()], **names["options"])
    names = run("Checkpoints", 0, "migration", **composer_names(), SAM=SAM, Trainer=Trainer, path=path)
    assert same(dict(names["model"].state_dict()), dict(model.state_dict()))
    assert names["trainer"].state.timestamp.batch == len(batches())
    assert not names["base"].state


def by_composers_optimizer(model: nn.Module, **options: Any) -> None:
    """Steps of Composer's SAM without its Trainer."""
    wrapper = pytest.importorskip("composer.algorithms.sam").SAMOptimizer
    optimizer = wrapper(torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9), **options)
    for x, y in batches():

        def closure(x: Tensor = x, y: Tensor = y, **_: Any) -> Tensor:
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)


def by_ours(model: nn.Module, method: Any, plain: int = 0) -> None:
    """As many plain steps, then those of the method."""
    base = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    optimizer = method.wrap(base, model=model)
    for i, (x, y) in enumerate(batches()):

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            base.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        if i < plain:
            closure()
            base.step()
        else:
            optimizer.step(closure)


@pytest.mark.parametrize("epsilon", [0.0, 1e-12, 0.3])
def test_epsilon_means_what_it_means_to_composer(epsilon: float) -> None:
    theirs, ours, without = (plain_network().double() for _ in range(3))
    by_composers_optimizer(theirs, rho=0.5, epsilon=epsilon)
    by_ours(ours, SAM(rho=0.5, epsilon=epsilon))
    close(theirs, ours)
    by_ours(without, SAM(rho=0.5))
    assert same(dict(ours.state_dict()), dict(without.state_dict())) == (epsilon == 0)


@pytest.mark.parametrize("interval", [2, 3])
def test_composers_interval_ends_where_ours_begins(interval: int) -> None:
    theirs, ours = plain_network().double(), plain_network().double()
    by_composers_optimizer(theirs, rho=0.5, interval=interval)
    by_ours(ours, SAM(rho=0.5, interval=interval), plain=interval - 1)
    close(theirs, ours)


def test_from_davdas_sam() -> None:
    theirs: Any = pytest.importorskip("pytorch_optimizer").SAM
    before, after = ({"model": plain_network().double(), "data": batches()} for _ in range(2))
    run(DAVDA, 0, "migration", **before, SAM=theirs)
    run(DAVDA, 1, "migration", **after)
    close(before["model"], after["model"], SINGLE)


def test_davdas_adaptive_is_asam_as_the_page_says() -> None:
    theirs: Any = pytest.importorskip("pytorch_optimizer").SAM

    def adaptive(*args: Any, rho: float, **options: Any) -> Any:
        return theirs(*args, rho=0.5, adaptive=True, **options)

    model, ours = plain_network().double(), plain_network().double()
    run(DAVDA, 0, "migration", model=model, data=batches(), SAM=adaptive)
    by_ours(ours, ASAM(rho=0.5, eta=0, normalize_bias=True))
    close(model, ours, SINGLE)
