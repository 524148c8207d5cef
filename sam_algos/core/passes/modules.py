"""What modules keep from one forward pass to the next, and how it is put back."""

from __future__ import annotations

import operator
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
)
from torch.nn.parameter import is_lazy

from sam_algos.core.tensors.shards import local

__all__ = ["Keepers", "ModuleState"]

_INTERNAL = frozenset(vars(nn.Module()))  # nn.Module's own attributes; buffers are looked at one by one
_CONTAINERS = (list, deque, dict, OrderedDict, defaultdict, Counter, set, tuple)
_ATOMS = frozenset({int, float, bool, str, bytes, type(None), type, FunctionType, torch.device, torch.dtype})
_GENERATORS = (torch.Generator, random.Random)
LARGE = 2**20  # elements of a tensor in an attribute
MANY = 1000  # entries of a container whose entries are looked into
SEVERAL = 50  # the same, of an object that is no module
SMALL = 1000  # elements of a tensor in an attribute of an object that is no module
_PutBack = Callable[[], Any]

_LIBRARY = ("torch", "builtins", "abc", "typing")


class _Registrations:
    """Counts the modules and buffers that have been added anywhere: while it stands still, no model changed."""

    def __init__(self) -> None:
        self.count = 0
        register_module_module_registration_hook(self._module)
        register_module_buffer_registration_hook(self._buffer)

    def _module(self, module: nn.Module, name: str, submodule: nn.Module | None) -> None:
        self.count += module._modules.get(name) is not submodule

    def _buffer(self, module: nn.Module, name: str, buffer: Tensor | None) -> None:
        self.count += name not in module._buffers  # a forward pass may assign anew to one that is there


_REGISTRATIONS = _Registrations()
_TRACKED = frozenset({"running_mean", "running_var", "num_batches_tracked"})


def tracks_on_request(module: nn.Module) -> bool:
    """Whether the module is a BatchNorm with PyTorch's own forward, which heeds ``track_running_stats``."""
    if not isinstance(module, _BatchNorm) or "forward" in vars(module):
        return False
    return type(module).forward.__module__.startswith("torch.nn.modules.")


def _is_users(module: nn.Module) -> bool:
    """Whether a class of the module's is somebody else's than PyTorch's; those keep their state in buffers."""
    return any(cls.__module__.partition(".")[0] not in _LIBRARY for cls in type(module).__mro__)


class Keepers:
    """The modules of a model that may keep something; found anew only when a module or buffer was added.

    Attributes:
        norms (list[Module]): BatchNorms, whose tracking is switched off instead of put back.
        buffers (list): The dictionaries of buffers, each with the names in it that need not be put back.
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
        modules = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
        scripted = [
            dict(m.named_buffers(recurse=False)) for m in model.modules() if isinstance(m, torch.jit.ScriptModule)
        ]
        self._searched = (model, _REGISTRATIONS.count)
        self.norms: list[Any] = [m for m in modules if tracks_on_request(m)]
        found = [(m._buffers, _TRACKED if tracks_on_request(m) else frozenset()) for m in modules]
        self.buffers = [(owner, but) for owner, but in found if owner.keys() - but]
        self.buffers += [(owner, frozenset()) for owner in scripted if owner]
        self.attributes = [vars(m) for m in modules if _is_users(m)]


class ModuleState:
    """A snapshot of buffers, of modules' attributes and of some parameters.

    An attribute is put back as the object that it was; lists, dictionaries, sets and deques also with their entries,
    those within one another too, tensors that are no part of a graph with their values, random generators with their
    state. Nothing is written that did not change. Left as they are: tensors of more than ``LARGE`` elements in
    attributes, entries of containers with more than ``MANY``, and aliases of trained parameters, which move with
    them.

    Of the program's objects, which may hold data sets and averaged weights, tensors of more than ``SMALL`` elements are
    left alone too. Lists of more than ``MANY`` entries lose what was appended since, if ``shortens``.

    Args:
        keepers: Where to look.
        parameters: Parameters that change in forward passes.
        trained: Where the trained parameters lie in memory.
        program: The attributes of objects of the program.
        shortens: Whether long lists among these are shortened to what they are now.
    """

    def __init__(
        self,
        keepers: Keepers,
        parameters: list[Tensor],
        trained: set[int],
        program: Sequence[dict[str, Any]] = (),
        *,
        shortens: bool = False,
    ) -> None:
        self._trained, self._shortens = trained, shortens
        self._seen: set[int] = set()
        self._buffers = [
            (owner, but, {name: b for name, b in owner.items() if name not in but}) for owner, but in keepers.buffers
        ]
        self._values = [v for _, _, kept in self._buffers for b in kept.values() for v in self._tensor(b)]
        modules = [
            (owner, {name: value for name, value in owner.items() if name not in _INTERNAL})
            for owner in keepers.attributes
        ]
        objects = [(owner, dict(owner)) for owner in program]
        self._attributes = modules + objects
        self._contents = [put_back for value in _held(modules) for put_back in self._content(value)]
        self._contents += [put_back for value in _held(objects) for put_back in self._content(value, program=True)]
        self._parameters = [(p, p.data, p.data.clone()) for p in parameters]

    def restore(self, *, attributes: bool = True, keep_new_buffers: bool = False) -> None:
        """Put everything back.

        Args:
            attributes: Put back attributes, and not only buffers and parameters.
            keep_new_buffers: Leave buffers alone that were registered since.
        """
        for owner, but, kept in self._buffers:
            if not keep_new_buffers:
                for name in owner.keys() - kept.keys() - but:
                    del owner[name]
            for name, buffer in kept.items():
                if owner.get(name) is not buffer:
                    owner[name] = cast(Any, buffer)
        for put_back in self._values:
            put_back()
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
        for put_back in self._contents:
            put_back()

    def _tensor(self, value: Any, largest: float = float("inf")) -> Iterator[_PutBack]:
        """How to give a tensor its values back; nothing for one that cannot be written, or moves with a parameter."""
        if not isinstance(value, Tensor) or is_lazy(value) or value.requires_grad or value.is_inference():
            return
        sides = () if value.is_contiguous() else zip(value.shape, value.stride(), strict=True)
        if any(n > 1 and by == 0 for n, by in sides):
            return  # expanded
        if value.numel() <= largest and local(value).untyped_storage().data_ptr() not in self._trained:
            copied = value.clone()
            yield lambda: _write(value, copied)

    def _content(self, value: Any, *, program: bool = False) -> Iterator[_PutBack]:
        """How to put back what ``value`` holds; nothing if it cannot change, or cannot be copied."""
        kind = type(value)
        if isinstance(value, Tensor):
            yield from self._tensor(value, SMALL if program else LARGE)
        elif kind in _CONTAINERS:
            if id(value) in self._seen:
                return
            self._seen.add(id(value))
            if program and kind is list and len(value) > MANY:
                yield from _appended(value) if self._shortens else ()
                return
            yield from _container(value)
            inner = value.values() if isinstance(value, dict) else value
            if len(value) <= (SEVERAL if program else MANY):  # longer ones of a program are data sets
                held = [item for item in inner if type(item) not in _ATOMS]
                yield from (put_back for item in held for put_back in self._content(item, program=program))
        elif isinstance(value, _GENERATORS) or kind.__module__.startswith("numpy.random"):
            yield from _generator(value)


def _write(value: Tensor, copied: Tensor) -> None:
    # On a CPU only where something changed: the memory may be a file that is open for reading. Elsewhere a
    # comparison would wait for the device.
    if not value.is_cpu or not torch.equal(local(value), local(copied)):
        value.copy_(copied)


def _held(attributes: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[Any]:
    return [value for _, kept in attributes for value in kept.values() if type(value) not in _ATOMS]


def _appended(value: list[Any]) -> Iterator[_PutBack]:
    """How to remove what will have been appended to a long list."""
    size = len(value)

    def put_back() -> None:
        del value[size:]

    yield put_back


def _container(value: Any) -> Iterator[_PutBack]:
    """How to put back the entries of a container, in place and only if they changed."""
    if isinstance(value, dict):
        entries = dict(value)

        def put_back() -> None:
            if value.keys() != entries.keys() or not all(map(operator.is_, map(value.get, entries), entries.values())):
                value.clear()
                value.update(entries)

    elif isinstance(value, set):
        members = set(value)

        def put_back() -> None:
            if value != members:
                value.clear()
                value.update(members)

    elif isinstance(value, tuple):
        return
    else:
        items = list(value)

        def put_back() -> None:
            if len(value) != len(items) or not all(map(operator.is_, value, items)):
                value.clear()
                value.extend(items)

    yield put_back


def _generator(value: Any) -> Iterator[_PutBack]:
    """How to put back a random generator of PyTorch's, Python's or NumPy's."""
    if isinstance(value, torch.Generator):
        state = value.get_state()
        yield lambda: value.set_state(state)
    elif isinstance(value, random.Random):
        python = value.getstate()
        yield lambda: value.setstate(python)
    elif type(value).__name__ == "Generator":
        numpy_state = value.bit_generator.state
        yield lambda: setattr(value.bit_generator, "state", numpy_state)
    elif type(value).__name__ == "RandomState":
        legacy = value.get_state()
        yield lambda: value.set_state(legacy)
