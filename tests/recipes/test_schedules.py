"""Every optimizer and every schedule that a recipe can name takes its steps."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
import torch

from sam_algos import train
from sam_algos.recipes.naming.components import optimizers, schedulers
from tests.command.running import Capture
from tests.recipes.writing import Write

NEEDED: dict[str, dict[str, Any]] = {
    "ConstantWithWarmupScheduler": {"t_warmup": "1ba"},
    "CosineAnnealingLR": {"T_max": 3},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CosineAnnealingWarmRestartsScheduler": {"t_0": "1ep"},
    "CosineAnnealingWithWarmupScheduler": {"t_warmup": "1ba"},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 0.2, "cycle_momentum": "false"},
    "ExponentialLR": {"gamma": 0.9},
    "ExponentialScheduler": {"gamma": 0.9},
    "LinearWithWarmupScheduler": {"t_warmup": "1ba"},
    "MultiStepLR": {"milestones": "[1,2]"},
    "MultiStepScheduler": {"milestones": "[1ep]"},
    "MultiStepWithWarmupScheduler": {"milestones": "[1ep]", "t_warmup": "1ba"},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 4, "cycle_momentum": "false"},
    "PolynomialScheduler": {"power": 2.0},
    "PolynomialWithWarmupScheduler": {"t_warmup": "1ba"},
    "StepLR": {"step_size": 1},
    "StepScheduler": {"step_size": "1ep"},
    "cosine_with_warmup": {"t_warmup": "1ba"},
    "linear_decay_with_warmup": {"t_warmup": "1ba"},
}


@pytest.mark.parametrize(("scheduler", "optimizer"), list(zip(schedulers(), cycle(optimizers()), strict=False)))
def test_trains(scheduler: str, optimizer: str, write: Write, capsys: Capture) -> None:
    needed = "".join(f", {key}: {value}" for key, value in NEEDED.get(scheduler, {}).items())
    argv = [str(write()), f"scheduler={{name: {scheduler}{needed}}}", f"optimizer={{name: {optimizer}, lr: 0.01}}"]
    assert train.main([*argv, "run_name=one", "global_train_batch_size=300", "algorithms.sam={}", "--traceback"]) == 0
    trained = torch.load("runs/one/checkpoints/ep1-ba3-rank0.pt", weights_only=False)["state"]["model"]
    assert all(bool(torch.isfinite(value).all()) for value in trained.values())


def test_there_are_more_schedules_than_optimizers() -> None:
    """So that every optimizer has its turn above."""
    assert len(schedulers()) >= len(optimizers())


def test_what_a_recipe_cannot_use_is_not_listed() -> None:
    assert not {"LBFGS", "SparseAdam"} & set(optimizers())
    of_functions, of_schedules = {"LambdaLR", "MultiplicativeLR"}, {"ChainedScheduler", "SequentialLR"}
    assert not (of_functions | of_schedules | {"ReduceLROnPlateau"}) & set(schedulers())
