"""The random streams that a forward pass can draw from."""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["RandomStreams"]

_WORDS = 624  # of a Mersenne twister's key; with its position, what draws change
_BYTES = 4 * (_WORDS + 1)


class RandomStreams(NamedTuple):
    """The state of Python's, NumPy's and PyTorch's global random streams."""

    python: Any
    numpy: Any
    torch: Tensor
    devices: list[tuple[torch.device, Tensor]]

    @classmethod
    def record(cls, devices: Collection[torch.device]) -> RandomStreams:
        """The streams as they are, those of ``devices`` among them."""
        states = []
        for device in devices:
            if device.type not in ("cpu", "meta"):
                states.append((device, torch.get_device_module(device).get_rng_state(device)))
        return cls(_PYTHON.record(), _NUMPY.record(), torch.default_generator.get_state(), states)

    def restore(self) -> None:
        """Draw from here again."""
        _PYTHON.restore(self.python)
        _NUMPY.restore(self.numpy)
        torch.default_generator.set_state(self.torch)
        for device, state in self.devices:
            torch.get_device_module(device).set_rng_state(state, device)


class _Twister:
    """A global Mersenne twister that is read and written only where somebody drew from it.

    To read and write Python's and NumPy's state twice in every step took 0.18 ms, a tenth of a step of a small network
    (x86, one thread), and a pass rarely draws from them. So the state counts as known while the generator's memory is
    what it was when it was read. That misses only a draw of the normal number that a generator may hold in reserve;
    while it holds one, the state is read.

    Args:
        memory: The key and the position, as bytes; None where they cannot be seen.
        read: The state.
        write: Sets it.
        holds_reserve: Whether a state has a normal number in reserve.
    """

    def __init__(
        self,
        memory: Callable[[], bytes | None],
        read: Callable[[], Any],
        write: Callable[[Any], None],
        holds_reserve: Callable[[Any], bool],
    ) -> None:
        self._memory, self._read, self._write, self._holds_reserve = memory, read, write, holds_reserve
        self._known: tuple[bytes, Any] | None = None

    def record(self) -> Any:
        """The state."""
        memory = self._memory()
        if self._known is not None and self._known[0] == memory:
            return self._known[1]
        state = self._read()
        self._known = None if memory is None or self._holds_reserve(state) else (memory, state)
        return state

    def restore(self, state: Any) -> None:
        """Go on from a recorded state."""
        if self._known is None or self._known[1] is not state or self._known[0] != self._memory():
            self._write(state)


def _python_address() -> int | None:
    """Where CPython keeps the global generator's position and key; None if they are not found there."""
    address = id(random._inst) + object.__basicsize__  # pyright: ignore[reportAttributeAccessIssue]
    *key, position = random.getstate()[1]
    if sys.implementation.name != "cpython":
        return None
    found = (ctypes.c_uint32 * (_WORDS + 1)).from_address(address)
    return address if list(found) == [position, *key] else None


def _view(address: int) -> Callable[[], bytes]:
    """Reads a twister's key and position."""
    return memoryview((ctypes.c_char * _BYTES).from_address(address)).tobytes


_ADDRESS = _python_address()
_PYTHON = _Twister(
    memory=(lambda: None) if _ADDRESS is None else _view(_ADDRESS),
    read=random.getstate,
    write=random.setstate,
    holds_reserve=lambda state: state[2] is not None,
)


def _numpy_random() -> Any:
    """``numpy.random`` if it was ever loaded; before that nobody can have drawn from it."""
    return sys.modules.get("numpy.random")


class _NumPyMemory:
    """Reads the memory of NumPy's global generator, which a program may replace."""

    _generator: Any = None
    _read: Callable[[], bytes | None]

    def __call__(self) -> bytes | None:
        if (numpy_random := sys.modules.get("numpy.random")) is None:
            return b""
        generator = numpy_random.mtrand._rand._bit_generator
        if generator is not self._generator:
            is_twister = type(generator).__name__ == "MT19937"  # whose documented ctypes interface is key and position
            self._generator = generator
            self._read = _view(generator.ctypes.state_address) if is_twister else lambda: None
        return self._read()


def _set_numpy_state(state: Any) -> None:
    if state is not None and (numpy_random := _numpy_random()) is not None:
        numpy_random.set_state(state)


_NUMPY = _Twister(
    memory=_NumPyMemory(),
    read=lambda: None if (numpy_random := _numpy_random()) is None else numpy_random.get_state(legacy=False),
    write=_set_numpy_state,
    holds_reserve=lambda state: state is not None and bool(state["has_gauss"]),
)
