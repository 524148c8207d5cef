"""The arguments that a function takes as ``**options`` and passes on, found by watching which function gets them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn

from sam_algos.recipes.naming.arguments import Argument, describe, source_of

_LIBRARY = "torchvision.models."

_NOT_OURS = ("self", "cls", "weights", "progress")  # the last two are about downloads


class _Reached(BaseException):
    """The network's constructor is called: all has been passed on, and nothing needs to be built."""


class _Probe(int):
    """A number that is recognised wherever it arrives."""


def forwarded(build: Callable[..., nn.Module]) -> dict[str, Argument]:
    """The arguments that a builder of one of torchvision's networks takes without naming them, with their defaults.

    The builder is called once for each name that a function of the network's module has for an argument. The name is
    taken if some function receives the value under a name of its own, and no call fails until the network's constructor
    is called. A constructor that swallows any ``**kwargs`` takes nothing that way.
    """
    parameters = inspect.signature(build).parameters.values()
    required = {each.name: 3 for each in parameters if each.default is each.empty and each.kind is each.KEYWORD_ONLY}
    # Memory is not needed, but some builders compute with tensors.
    device = "meta" if _calls(build, required, "meta") else "cpu"
    usual = _calls(build, required, device)
    modules = sorted({frame.f_globals["__name__"] for frame in usual})
    functions = {code: function for module in modules for code, function in _functions(module)}
    known = {*_NOT_OURS, *required, *(each.name for each in parameters)}
    found = {}
    for name in dict.fromkeys(name for code in functions for name in _named(code) if name not in known):
        probe = _Probe(1)
        calls = [frame for frame in _calls(build, {**required, name: probe}, device) if frame.f_code in functions]
        received = [(frame, own) for frame in calls for own in _named(frame.f_code)]
        takers = [(frame.f_code, own) for frame, own in received if frame.f_locals.get(own) is probe]
        for code, own in takers[-1:]:
            values = [source_of(frame.f_locals[own]) for frame in usual if frame.f_code is code]
            found[name] = replace(describe(functions[code]).arguments[own], default=next(iter(values), "..."))
    return found


def _calls(build: Callable[..., nn.Module], arguments: dict[str, Any], device: str) -> list[FrameType]:
    """The calls of the library's functions up to that of the network's constructor; none where that is not reached."""
    frames: list[FrameType] = []

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_globals.get("__name__", "").startswith(_LIBRARY):
            frames.append(frame)
            if frame.f_code.co_name == "__init__" and isinstance(frame.f_locals.get("self"), nn.Module):
                raise _Reached

    before = sys.getprofile()
    try:
        with torch.device(device):
            sys.setprofile(watch)
            build(**arguments)
    except _Reached:
        return frames
    except Exception:  # whatever it is, a call with this argument fails
        return []
    finally:
        sys.setprofile(before)
    return []


def _functions(module: str) -> Iterator[tuple[CodeType, Callable[..., Any]]]:
    """The functions and methods of a module."""
    for member in vars(sys.modules[module]).values():
        for function in vars(member).values() if inspect.isclass(member) else [member]:
            function = getattr(function, "__func__", function)
            if inspect.isfunction(function) and function.__module__ == module:
                yield function.__code__, function


def _named(code: CodeType) -> tuple[str, ...]:
    return code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
