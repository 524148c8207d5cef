"""The random streams that a forward pass can draw from."""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["RandomStreams"]


class RandomStreams(NamedTuple):
    """The state of Python's, NumPy's and PyTorch's global random streams."""

    python: Any
    numpy: Any
    torch: Tensor
    devices: list[tuple[torch.device, Tensor]]

    @classmethod
    def record(cls, devices: Collection[torch.device]) -> RandomStreams:
        """The streams as they are, those of ``devices`` among them."""
        accelerators = [d for d in devices if d.type not in ("cpu", "meta")]
        states = [(d, torch.get_device_module(d).get_rng_state(d)) for d in accelerators]
        return cls(random.getstate(), _NUMPY.record(), torch.get_rng_state(), states)

    def restore(self) -> None:
        """Draw from here again."""
        random.setstate(self.python)
        _NUMPY.restore(self.numpy)
        torch.set_rng_state(self.torch)
        for device, state in self.devices:
            torch.get_device_module(device).set_rng_state(state, device)


class _NumPyStream:
    """NumPy's global stream, at a price only where somebody draws from it.

    Its state takes 35 µs to read and as long to write, and a pass rarely draws from it. It is not read again while
    the generator's memory (its documented ctypes interface) is what it was; that misses a draw only from the
    normal number that NumPy may hold in reserve, and where it holds one the state is read.
    """

    _BYTES = 624 * 4 + 4  # of an MT19937: its key and the position in it

    def __init__(self) -> None:
        self._known: tuple[bytes | None, Any] | None = None

    def record(self) -> Any:
        """The state; None where NumPy's stream has never been loaded, so that nobody can have drawn."""
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is None:
            return None
        memory = self._memory(numpy_random)
        if self._known is not None and self._known[0] == memory:
            return self._known[1]
        state = numpy_random.get_state()
        holds_a_normal_number = memory is None or state[3]
        self._known = None if holds_a_normal_number else (memory, state)
        return state

    def restore(self, state: Any) -> None:
        """Go on from a recorded state."""
        numpy_random = sys.modules.get("numpy.random")
        if state is None or numpy_random is None:
            return
        if self._known is None or self._known[1] is not state or self._known[0] != self._memory(numpy_random):
            numpy_random.set_state(state)

    def _memory(self, numpy_random: Any) -> bytes | None:
        generator = numpy_random.mtrand._rand._bit_generator
        if type(generator).__name__ != "MT19937":
            return None
        return ctypes.string_at(generator.ctypes.state_address, self._BYTES)


_NUMPY = _NumPyStream()
