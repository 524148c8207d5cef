"""Running a second pass so that it sees what the first saw, and leaves no trace.

Both passes must draw the same dropout masks and MixUp coefficients, and whatever training counts once per batch
(BatchNorm's running statistics, spectral norm's power iteration, the random stream itself) must be left as one
pass at the clean weights leaves it.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
)

from sam_algos.batch import tensors_in

__all__ = ["RandomStreams", "Replay"]


class RandomStreams(NamedTuple):
    """The state of every random stream that a forward pass can draw from."""

    python: Any
    numpy: Any
    torch: Tensor
    devices: list[tuple[torch.device, Tensor]]

    @classmethod
    def record(cls, devices: Collection[torch.device]) -> RandomStreams:
        """The streams as they are, those of ``devices`` among them."""
        accelerators = [d for d in devices if d.type in ("cuda", "mps")]
        states = [(d, torch.get_device_module(d).get_rng_state(d)) for d in accelerators]
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), states)

    def restore(self) -> None:
        """Draw from here again."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        for device, state in self.devices:
            torch.get_device_module(device).set_rng_state(state, device)


class _Registrations:
    """Counts the modules and buffers that have been registered anywhere: while it stands still, no model changed."""

    def __init__(self) -> None:
        self.count = 0
        register_module_module_registration_hook(self._registered)
        register_module_buffer_registration_hook(self._registered)

    def _registered(self, *_: Any) -> None:
        self.count += 1


_REGISTRATIONS = _Registrations()


def _tracks_on_request(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether the module is a BatchNorm with PyTorch's own forward, which heeds ``track_running_stats``."""
    return isinstance(module, _BatchNorm) and type(module).forward.__module__.startswith("torch.nn.modules.")


class Replay:
    """Records what the first pass starts from, and runs the second from there.

    BatchNorm is told not to track in the second pass, which costs nothing. Any other buffer that the first pass
    changed is put back to what that pass made of it; so is any tensor of the batch that was transformed in place.
    (A change through ``buffer.data`` cannot be seen, and counts twice.)
    Integers in which modules count their calls go back and forth with the random streams: with them they decide
    what is drawn (Composer's GyroDropout redraws its masks every so many calls).
    """

    def __init__(self) -> None:
        self._walked: tuple[nn.Module, int] | None = None
        self._batch: list[tuple[Tensor, int, Tensor]] = []

    def __reduce__(self) -> Any:
        """Copy and pickle as a new one: what was found are parts of the original's model."""
        return Replay, ()

    def record(
        self, model: nn.Module, devices: Collection[torch.device], batch: Any = None, *, narrowed: bool = False
    ) -> None:
        """Record the state that the first pass is about to start from.

        Args:
            model: The model.
            devices: The devices of its parameters.
            batch: The batch, where the pass may transform it in place.
            narrowed: Whether the pass sees fewer samples than the second will. What one pass draws and counts is
                then taken from the second, which sees what a step without it would.
        """
        self._narrowed = narrowed
        if self._walked is None or self._walked[0] is not model or self._walked[1] != _REGISTRATIONS.count:
            self._walk(model)
        self._devices = devices
        self._batch = [(tensor, tensor._version, tensor.clone()) for tensor in tensors_in(batch)]
        self._buffers = [
            (owner, name, buffer, buffer._version)
            for owner in self._buffer_owners
            for name, buffer in owner.items()
            if buffer is not None
        ]
        self._counts = [(owner, name, owner[name]) for owner, name in self._counters if name in owner]
        self._streams = RandomStreams.record(devices)

    def _walk(self, model: nn.Module) -> None:
        """Find what a pass may change; done anew only when some module or buffer has been registered."""
        modules = list(model.modules())
        self._walked = (model, _REGISTRATIONS.count)
        self._norms = [m for m in modules if _tracks_on_request(m)]
        self._buffer_owners = [m._buffers for m in modules if m._buffers and not _tracks_on_request(m)]
        self._counters = [
            (vars(m), name)
            for m in modules
            if not type(m).__module__.startswith("torch.nn.modules.")  # these count in buffers, if at all
            for name, value in vars(m).items()
            if type(value) is int
        ]
        self._sharded = any(isinstance(m, FSDPModule) for m in modules)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Run the body as a repetition of the first pass that leaves no trace of its own."""
        streams = RandomStreams.record(self._devices)
        batch, self._batch = self._batch, []
        buffers = [
            (owner, name, current, current.clone())
            for owner, name, recorded, version in self._buffers
            if (current := owner.get(name)) is not None and (current is not recorded or current._version != version)
        ]
        tracking = [norm for norm in self._norms if norm.track_running_stats]
        advanced = [
            (owner, name, count, now) for owner, name, count in self._counts if (now := owner.get(name, count)) != count
        ]
        try:
            for tensor, version, original in batch:
                if tensor._version != version:
                    tensor.copy_(original)
            for owner, name, count, _ in advanced:
                owner[name] = count
            for norm in tracking:
                vars(norm)["track_running_stats"] = False  # as the attribute is set, without nn.Module's bookkeeping
            self._streams.restore()
            yield
            if self._narrowed:
                streams = RandomStreams.record(self._devices)
                advanced = [(owner, name, count, owner[name]) for owner, name, count, _ in advanced]
        except BaseException:
            if self._sharded and self._walked is not None:
                # FSDP2 would go on computing with the perturbed weights that it had gathered when the pass failed.
                # Its hook on state_dict drops them wherever that was; reshard() would not, in a forward.
                self._walked[0].state_dict()
            raise
        finally:
            for norm in tracking:
                vars(norm)["track_running_stats"] = True
            for owner, name, buffer, value in buffers:
                owner[name] = buffer
                buffer.copy_(value)
            for owner, name, _, count in advanced:
                owner[name] = count
            streams.restore()
