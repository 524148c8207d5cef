from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sam_algos.core.objective.sight import Sight

torch.set_warn_always(True)  # else a warning fails whichever test of a process meets it first, and no other


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread makes sums repeatable, and leaves the other core to pytest-xdist."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def without_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first displaced pass be as all others: see `sam_algos.core.objective.sight`."""
    monkeypatch.setattr(Sight, "needs_look", lambda *_: False)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and this machine has none")
