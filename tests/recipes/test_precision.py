"""bfloat16 where the device has it."""

from __future__ import annotations

import pytest
import torch
from composer.core import Precision
from composer.devices import DeviceCPU, DeviceGPU

from sam_algos.recipes import load_recipe
from sam_algos.recipes.run import prepare
from sam_algos.recipes.run.engine import precision_on
from tests.recipes.writing import Write

BF16_OR_FP32 = "amp_bf16_or_fp32"


@pytest.mark.parametrize(("native", "expected"), [(True, "amp_bf16"), (False, "fp32")])
def test_a_gpu_computes_in_bfloat16_if_it_has_it(native: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = DeviceGPU.__new__(DeviceGPU)  # without the hardware
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    assert precision_on(gpu, BF16_OR_FP32) == expected
    assert precision_on(gpu, "amp_fp16") == "amp_fp16"
    assert precision_on(gpu, None) is None


def test_on_a_cpu_a_recipe_runs_in_single_precision(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert precision_on(DeviceCPU(), BF16_OR_FP32) == "fp32"
    run = prepare(load_recipe(write(), [f"precision={BF16_OR_FP32}"]), "test")
    assert run.trainer.state.precision == Precision.FP32
    assert load_recipe(run.recipe).precision == BF16_OR_FP32
