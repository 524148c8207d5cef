"""Loading sharded checkpoints that lack a method's buffers."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

from composer.core import State
from composer.utils.parallelism import FSDP2Config, FSDPConfig
from torch.distributed.checkpoint import DefaultLoadPlanner, LoadPlan

__all__ = ["load_without", "will_be_fsdp1"]


def will_be_fsdp1(state: State) -> bool:
    """Whether the Trainer will shard the model by FSDP1."""
    return isinstance(state.fsdp_config, FSDPConfig)


class _Planner(DefaultLoadPlanner):
    """Skips a method's buffers that the checkpoint lacks. Everything else must be in the checkpoint."""

    def __init__(self, added: Collection[str]) -> None:
        super().__init__()
        self._added = frozenset(added)

    def create_local_plan(self) -> LoadPlan:
        saved = self.metadata.state_dict_metadata if self.metadata else {}
        self.state_dict = {
            key: value
            for key, value in self.state_dict.items()
            if key in saved or key.rpartition(".")[2] not in self._added
        }
        return super().create_local_plan()


def load_without(buffers: Collection[str], state: State) -> None:
    """Let a sharded checkpoint lack ``buffers``, which then start from zero, and a parameter group's own ``rho``.

    A checkpoint lacks them if it was written by plain training, or by a method before its first sharp step.
    """
    config, optimizer = state.fsdp_config, state.optimizers[0]
    added = set(buffers)
    if "rho" not in optimizer.defaults and any("rho" in group for group in optimizer.param_groups):
        added.add("rho")
    if not added or not isinstance(config, FSDP2Config) or config.load_planner is not None:
        return

    # The planner is a read-only property of the class, and returns None.
    class Config(type(config)):
        @property
        def load_planner(self) -> _Planner:
            return _Planner(added)

    Config.__name__, Config.__qualname__ = type(config).__name__, type(config).__qualname__
    lenient: Any = copy.copy(config)
    lenient.__class__ = Config
    state.fsdp_config = lenient
