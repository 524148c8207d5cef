from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.distributed.launcher import run_group

Found = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What a scenario returned on each rank: ``found(group, processes, scenario)``."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}

    def find(group: str, processes: int, scenario: str) -> list[Any]:
        if (group, processes) not in groups:
            groups[group, processes] = run_group(group, processes, shared / f"{group}-{processes}")
        ranks = [results[scenario] for results in groups[group, processes]]
        for rank, result in enumerate(ranks):
            assert not isinstance(result, str), f"{scenario} failed on rank {rank}:\n{result}"
        return ranks

    return find
