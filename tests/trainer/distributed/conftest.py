from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from tests.launcher import once, run

Found = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What a scenario returned on each rank: ``found(group, processes, scenario)``."""

    def find(group: str, processes: int, scenario: str) -> list[Any]:
        worker = partial(run, "tests.trainer.distributed.worker", processes)
        folder, trouble = once(tmp_path_factory, f"processes-{processes}", worker)
        files = [folder / f"{group}.{scenario}.rank{rank}.pt" for rank in range(processes)]
        assert all(file.exists() for file in files), f"{scenario} was not reached:\n{trouble}"
        ranks = [torch.load(file, weights_only=False) for file in files]
        for rank, result in enumerate(ranks):
            assert not isinstance(result, str), f"{scenario} failed on rank {rank}:\n{result}"
        return ranks

    return find
