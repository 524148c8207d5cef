"""What precision a recipe trains in, where it leaves that to the device."""

from __future__ import annotations

import torch
from composer.devices import Device, DeviceGPU

BF16_OR_FP32 = "amp_bf16_or_fp32"
"""A recipe's word for mixed precision in bfloat16 where the hardware has it, and single precision elsewhere."""


def precision_on(device: Device, precision: str | None) -> str | None:
    """What Composer's Trainer is told.

    Args:
        device (Device): Where it trains.
        precision (str, optional): What the recipe says.

    Returns:
        str | None: ``amp_bf16`` or ``fp32`` for ``amp_bf16_or_fp32``; all else as it is.
    """
    if precision != BF16_OR_FP32:
        return precision
    # Older GPUs emulate bfloat16, more slowly than they compute in float32.
    native = isinstance(device, DeviceGPU) and torch.cuda.is_bf16_supported(including_emulation=False)
    return "amp_bf16" if native else "fp32"
