"""Refuse programs under which a method would be silently wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

__all__ = [
    "hook_with_memory",
    "is_private",
    "refuse_deepspeed",
    "refuse_fsdp1",
    "refuse_memory_of_hooks",
    "refuse_trainers",
]


def refuse_trainers(closure: Callable[..., Any]) -> None:
    """Refuse the closures of training programs that clip and log in them, at every pass.

    Raises:
        TypeError: If it is one.
    """
    module = getattr(getattr(closure, "func", closure), "__module__", None) or ""
    if module.startswith("composer.trainer"):
        raise TypeError(
            "Composer's Trainer was given an optimizer that is already wrapped. Give it the base optimizer, and the "
            "method as an algorithm: Trainer(optimizers=optimizer, algorithms=[SAM(...)])."
        )
    if module.startswith(("lightning.", "pytorch_lightning.", "lightning_fabric.")):
        raise TypeError(
            "Lightning was given an optimizer that is already wrapped, and would clip and log at every pass. Give it "
            "the base optimizer, and its module the mixin sam_algos.integrations.lightning.SharpnessAwareMixin; with "
            "manual optimization call optimizer.backward(closure) in the training step."
        )


def refuse_deepspeed(method: str, model: nn.Module) -> None:
    """Refuse DeepSpeed's engine, whose backward pass leaves no gradients and may step.

    Args:
        method: The name of the method, for the error.
        model: The model to be trained.

    Raises:
        ValueError: If it is one.
    """
    if any(cls.__module__.partition(".")[0] == "deepspeed" for cls in type(model).__mro__):
        raise ValueError(
            f"{method}: DeepSpeed is not supported: its engine keeps the gradients to itself and takes the steps. Use "
            "DistributedDataParallel, or FSDP2: torch.distributed.fsdp.fully_shard."
        )


def refuse_fsdp1(method: str, model: nn.Module, *, configured: bool = False) -> None:
    """Refuse FSDP1, whose flat shards do not say which ranks complete a norm.

    Args:
        method: The name of the method, for the error.
        model: The model to be trained.
        configured: Whether it will be sharded so.

    Raises:
        ValueError: If the model, or a part of it, is or will be sharded by FSDP1.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    wrapped = fsdp is not None and any(isinstance(m, fsdp.FullyShardedDataParallel) for m in model.modules())
    if wrapped or configured:
        raise ValueError(
            f"{method}: FSDP1 (FullyShardedDataParallel) is not supported: norms over flat shards would be "
            "those of one process. Use FSDP2: torch.distributed.fsdp.fully_shard, or under Composer "
            "parallelism_config={'fsdp': composer.utils.parallelism.FSDP2Config()}."
        )


def is_private(optimizer: Optimizer) -> bool:
    """Whether the optimizer is one of Opacus, which steps by per-sample gradients of the last backward pass."""
    return any(cls.__module__.partition(".")[0] == "opacus" for cls in type(optimizer).__mro__)


def hook_with_memory(model: nn.Module) -> str | None:
    """The communication hook of a ``DistributedDataParallel`` that keeps something from pass to pass, as PowerSGD."""
    for module in (model, *model.children()):
        for hook, state in vars(module).get("_comm_hooks", ()):
            if state is not None and not isinstance(state, dist.ProcessGroup):
                return f"{getattr(hook, '__name__', hook)} ({type(state).__name__})"
    return None


def refuse_memory_of_hooks(model: nn.Module) -> None:
    """Refuse to average a second gradient in one step through a hook that keeps something from pass to pass.

    Raises:
        ValueError: If the model has such a hook.
    """
    if (hook := hook_with_memory(model)) is not None:
        raise ValueError(
            f"The model's communication hook {hook} keeps a memory of the gradients that it averaged, and this method "
            "averages more than one in a step. Use a hook without a state, such as bf16_compress_hook, or a method "
            "that averages one: SAM(synchronize=False) without a static graph, not LookSAM or GSAM."
        )
