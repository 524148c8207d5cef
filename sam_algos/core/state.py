"""What modules keep from one forward pass to the next, and how it is put back."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
)

__all__ = ["Keepers", "ModuleState"]

_INTERNAL = frozenset(vars(nn.Module()))  # nn.Module's own attributes; buffers are looked at one by one
_LIBRARY = ("torch", "builtins", "abc", "typing")


class _Registrations:
    """Counts the modules and buffers that have been registered anywhere: while it stands still, no model changed."""

    def __init__(self) -> None:
        self.count = 0
        register_module_module_registration_hook(self._registered)
        register_module_buffer_registration_hook(self._registered)

    def _registered(self, *_: Any) -> None:
        self.count += 1


_REGISTRATIONS = _Registrations()


def tracks_on_request(module: nn.Module) -> bool:
    """Whether the module is a BatchNorm with PyTorch's own forward, which heeds ``track_running_stats``."""
    return isinstance(module, _BatchNorm) and type(module).forward.__module__.startswith("torch.nn.modules.")


def _is_users(module: nn.Module) -> bool:
    """Whether a class of the module's is somebody else's than PyTorch's; those keep their state in buffers."""
    return any(cls.__module__.partition(".")[0] not in _LIBRARY for cls in type(module).__mro__)


class Keepers:
    """The modules of a model that may keep something; found anew only when a module or buffer was registered.

    Attributes:
        norms (list[Module]): BatchNorms, whose tracking is switched off instead of put back.
        buffers (list[dict]): The dictionaries of all other buffers.
        attributes (list[dict]): The attributes of modules that are not PyTorch's own.
        fresh (bool): Whether the model was searched in this look.
    """

    def __init__(self) -> None:
        self._searched: tuple[nn.Module, int] | None = None
        self.fresh = False

    def look(self, model: nn.Module) -> None:
        """Search ``model`` if it may have changed since the last look."""
        self.fresh = self._searched is None or self._searched != (model, _REGISTRATIONS.count)
        if not self.fresh:
            return
        modules = list(model.modules())
        self._searched = (model, _REGISTRATIONS.count)
        self.norms: list[Any] = [m for m in modules if tracks_on_request(m)]
        self.buffers = [m._buffers for m in modules if m._buffers and not tracks_on_request(m)]
        self.attributes = [vars(m) for m in modules if _is_users(m)]


class _Content(NamedTuple):
    """An object that can change in place, and how to give it back what it held."""

    put_back: Callable[[], Any]


class ModuleState:
    """A snapshot of buffers, of modules' attributes and of some parameters.

    An attribute is put back as the object that it was; a tensor that is no part of a graph, a list, dictionary, set or
    deque, and a random generator also with what it held.

    Args:
        keepers: Where to look.
        parameters: Parameters that change in forward passes.
    """

    def __init__(self, keepers: Keepers, parameters: list[Tensor]) -> None:
        self._buffers = [
            (owner, {name: (b, None if b is None else b.clone()) for name, b in owner.items()})
            for owner in keepers.buffers
        ]
        self._attributes = [
            (owner, {name: value for name, value in owner.items() if name not in _INTERNAL})
            for owner in keepers.attributes
        ]
        self._contents = [c for _, kept in self._attributes for value in kept.values() for c in _content(value)]
        self._parameters = [(p, p.data, p.data.clone()) for p in parameters]

    def restore(self, *, attributes: bool = True, keep_new_buffers: bool = False) -> None:
        """Put everything back.

        Args:
            attributes: Put back attributes, and not only buffers and parameters.
            keep_new_buffers: Leave buffers alone that were registered since.
        """
        for owner, kept in self._buffers:
            for name in [name for name in owner if name not in kept and not keep_new_buffers]:
                del owner[name]
            for name, (buffer, value) in kept.items():
                owner[name] = buffer
                if buffer is not None and value is not None:
                    buffer.copy_(value)
        for p, data, value in self._parameters:
            p.data = data
            p.data.copy_(value)
        if attributes:
            self._restore_attributes()

    def _restore_attributes(self) -> None:
        for owner, kept in self._attributes:
            for name in [name for name in owner if name not in kept and name not in _INTERNAL]:
                del owner[name]
            owner.update(kept)
        for content in self._contents:
            content.put_back()


def _content(value: Any) -> Iterator[_Content]:
    """How to put back what ``value`` holds; nothing if it cannot change, or cannot be copied."""
    kind = type(value)
    if isinstance(value, Tensor):
        if not value.requires_grad:
            copied = value.clone()
            yield _Content(lambda: value.copy_(copied))
    elif kind in (list, deque):
        items = list(value)
        yield _Content(lambda: (value.clear(), value.extend(items)))
    elif kind in (dict, set):
        entries = value.copy()
        yield _Content(lambda: (value.clear(), value.update(entries)))
    elif isinstance(value, torch.Generator):
        state = value.get_state()
        yield _Content(lambda: value.set_state(state))
    elif isinstance(value, random.Random):
        python = value.getstate()
        yield _Content(lambda: value.setstate(python))
    elif (numpy_random := sys.modules.get("numpy.random")) is not None:
        if isinstance(value, numpy_random.Generator):
            numpy_state = value.bit_generator.state
            yield _Content(lambda: setattr(value.bit_generator, "state", numpy_state))
        elif isinstance(value, numpy_random.RandomState):
            legacy = value.get_state()
            yield _Content(lambda: value.set_state(legacy))
