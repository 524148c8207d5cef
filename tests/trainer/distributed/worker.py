"""One process: runs every scenario and writes what each returned, or its traceback."""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

PATIENCE = 30  # seconds that a process waits for another
GROUPS = {1: ("kill", "shards", "fsdp"), 2: ("ddp", "shards", "fsdp")}
"""What one process runs, and what two do; importing Composer takes longer than most scenarios."""


def main(folder: str) -> None:
    from composer.utils import dist

    torch.set_num_threads(1)
    for group in GROUPS[dist.get_world_size()]:
        module = importlib.import_module(f"tests.trainer.distributed.scenarios_{group}")
        if module.NEEDS_PROCESS_GROUP and not torch.distributed.is_initialized():
            dist.initialize_dist("cpu", timeout=PATIENCE)
        for name, scenario in module.SCENARIOS.items():
            result = run(f"{group}.{name}", scenario, Path(folder))
            torch.save(result, Path(folder) / f"{group}.{name}.rank{dist.get_global_rank()}.pt")
            if torch.distributed.is_initialized():
                torch.distributed.monitored_barrier(timeout=timedelta(seconds=2 * PATIENCE))


def run(name: str, scenario: Callable[[Path], Any], folder: Path) -> Any:
    start = time.perf_counter()
    torch.manual_seed(0)
    try:
        return scenario(folder / name)
    except KeyboardInterrupt:
        raise
    except BaseException:  # torch's CheckpointException is no Exception
        return traceback.format_exc()
    finally:
        print(f"{time.perf_counter() - start:6.2f} s  {name}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
