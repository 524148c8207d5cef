"""Whether a displaced pass sees the displaced weights: a closure may work with a loss, a layer or a cache from before.

One displaced pass is looked at, and another only if the closure's code or the model is another. Suspects are the
parameters whose gradient came from no layer that ran during the pass; and all of them if the loss is bit for bit that
at ``w``. Suspects are moved further: if neither the loss nor any gradient changes and no operation reads them, the pass
did not see them. Usually this costs a comparison of two losses. More passes run only where there are suspects, or where
no pass at ``w`` has told the loss.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from inspect import unwrap
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from sam_algos.core.refusals import hook_with_memory
from sam_algos.core.tensors import lists as tensors
from sam_algos.core.tensors import shards
from sam_algos.core.tensors.displacement import Displaced, Displacement
from sam_algos.core.tensors.parameters import Names
from sam_algos.core.tensors.vector import Vector

__all__ = ["Left", "Look", "Sight", "explain_stale_graph"]

ATTEMPTS = 10
"""After how many passes that could not be judged, of a zero gradient for example, nothing is looked at any more."""

NUDGE = 0.5
"""How far suspects are moved, relative to their own size: enough to show in any precision, too little to do harm."""


class Left(NamedTuple):
    """The loss that a pass returned, and the gradient that it left."""

    loss: Any
    gradient: Vector


Rerun = Callable[..., "Left | None"]
"""Runs the closure once more within some contexts, and leaves no trace; None on an overflow."""


class Sight:
    """Which closures have been seen to see the displaced weights; one per optimizer."""

    def __init__(self) -> None:
        self._settled: dict[int, tuple[Any, nn.Module]] = {}
        self._settled_by_all: nn.Module | None = None
        self._looked: list[Any] = []  # code of closures whose passes are being looked at: of a step, all microbatches'
        self._failed = 0

    def __reduce__(self) -> Any:
        """Copy and pickle as a new one: code objects cannot be pickled."""
        return Sight, ()

    def needs_look(self, closure: Callable[..., Any], model: nn.Module) -> bool:
        """Whether a displaced pass of this closure is still to be looked at."""
        if self._settled_by_all is model:
            return False
        code = _code(closure)
        found = self._settled.get(id(code))
        wanted = found is None or found[0] is not code or found[1] is not model
        if wanted and not any(code is other for other in self._looked):
            self._looked.append(code)
        return wanted

    def is_everywhere(self, processes: shards.Processes, model: nn.Module, *, looks: bool) -> bool:
        """Whether all processes look at the pass that is to run. All of them have to ask.

        One of them may have no direction to climb in. The others then do not look in this step, as votes on what they
        found would wait for it.

        Args:
            processes: Those that run the model together.
            model: The model.
            looks: Whether this process does.
        """
        if processes.alone:
            return looks
        [everywhere], [somewhere] = processes.all([looks]), processes.any([looks])
        self._failed += somewhere and not everywhere
        if self._failed >= ATTEMPTS:
            self._settled_by_all = model
        return everywhere

    def judged(self, look: Look, *, settled: bool) -> None:
        """Look no more at the closures of this step; with several processes at none, as their closures may differ.

        Args:
            look: The step's.
            settled: Whether it could be judged. After ``ATTEMPTS`` that could not, it counts as if.
        """
        looked, self._looked = self._looked, []
        self._failed += not settled
        if not settled and self._failed < ATTEMPTS:
            return
        if look.processes.alone:
            self._settled.update((id(code), (code, look.model)) for code in looked)
        else:  # one process that looked again would wait for the others in vain
            self._settled_by_all = look.model


def _code(closure: Any) -> Any:
    """What stays the same when a loop makes a new closure for each batch."""
    while isinstance(closure, partial):
        closure = closure.func
    function: Any = unwrap(getattr(closure, "__func__", closure))
    found = getattr(function, "__code__", None)
    return found or getattr(type(function).__call__, "__code__", type(function))


class Look:
    """A look at one displaced pass. It, or the one at ``w`` that it is compared with, runs within ``with look:``.

    Args:
        model: The model that the passes run.
        displaced: The displaced weights.
        moving: The parameters with a radius above 0, displaced or not: the same on all processes.
    """

    def __init__(self, model: nn.Module, displaced: Displaced, moving: Sequence[Tensor]) -> None:
        self.model = model
        self.processes = shards.Processes(model, moving)
        self._displaced, self._moving = displaced, moving
        self._stands_still = displaced.stands_still(moving)
        wanted = set(map(id, moving))
        owned = ((m, wanted.intersection(map(id, m._parameters.values()))) for m in model.modules())
        self._owned = {m: ids for m, ids in owned if ids}
        self._idle = wanted
        self._hooks: list[Any] = []

    def __enter__(self) -> None:
        layers = (m for m in self._owned if not isinstance(m, torch.jit.ScriptModule))
        self._hooks = [m.register_forward_pre_hook(self._note) for m in layers]

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(self, module: nn.Module, args: Any) -> None:
        """A layer runs. Layers that are compiled or scripted do not say so, and count as idle."""
        self._idle -= self._owned[module]

    def judge(self, there: Left, at_w: Sequence[Any], rerun: Rerun) -> bool:
        """Judge the pass. Returns False if it cannot be judged: the gradient is zero, or the pass overflowed.

        Args:
            there: What the pass left.
            at_w: The loss at ``w`` on the same samples; empty if no pass has told it.
            rerun: Runs more passes.

        Raises:
            RuntimeError: If the pass did not see the displaced weights.
        """
        if not at_w:
            before = None if hook_with_memory(self.model) is not None else rerun(self)
            if before is None:
                return False
            at_w = [before.loss]
        [same] = self.processes.all([_same(at_w[0], there.loss)])
        suspects = self._suspects(there.gradient, same)
        if not (same or suspects) or hook_with_memory(self.model) is not None:
            return True
        finite = all(bool(value.isfinite().all()) for value in there.gradient.values)
        if not suspects or not self.processes.all([finite])[0]:
            return False
        if self._nothing_depends_on(suspects, there, rerun):
            if unread := self._unread(suspects, rerun):
                raise RuntimeError(_what_is_unseen(unread, self.model))
        elif same:
            before = rerun()
            equal = before is not None and _equal(before.gradient, there.gradient) and not self._stands_still
            if self.processes.all([equal])[0]:
                _warn_of_small_radius(self._moving)
        return True

    def _suspects(self, gradient: Vector, same: bool) -> list[Tensor]:
        """All, or those without a layer that ran if the loss is another; only what was displaced and has a gradient."""
        votes = self.processes.all([same or id(p) in self._idle for p in self._moving])
        idle = [p for p, yes in zip(self._moving, votes, strict=True) if yes]
        values = dict(zip(map(id, gradient.params), gradient.values, strict=True)) if idle else {}
        displaced = set(map(id, self._displaced.params)).intersection(values)
        votes = self.processes.any([id(p) in displaced and bool(values[id(p)].any()) for p in idle]) if idle else []
        return [p for p, yes in zip(idle, votes, strict=True) if yes]

    def _nothing_depends_on(self, suspects: Sequence[Tensor], there: Left, rerun: Rerun) -> bool:
        """Whether neither the loss nor any gradient changes when they move on."""
        try:
            nudged = rerun(self._displaced, _Nudged(suspects, self.model))
        except (Exception, SystemExit):  # the program refuses such weights, so it has seen them
            nudged = None
        equal = nudged is not None and _same(nudged.loss, there.loss) and _equal(nudged.gradient, there.gradient)
        return self.processes.all([equal])[0]

    def _unread(self, suspects: Sequence[Tensor], rerun: Rerun) -> list[Tensor]:
        """The suspects that no operation reads; a linear loss whose value is not returned reads all."""
        reads = _Reads(suspects)
        rerun(self._displaced, reads)
        unread = set(map(id, reads.unread()))
        votes = self.processes.all([id(p) in unread for p in suspects])
        return [p for p, yes in zip(suspects, votes, strict=True) if yes]


def _same(a: Any, b: Any) -> bool:
    """Whether two losses are the same bit for bit, or cannot be compared."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        a, b = shards.local(a.detach()), shards.local(b.detach())
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a == b or (math.isnan(a) and math.isnan(b))
    return True


def _equal(a: Vector, b: Vector) -> bool:
    return list(map(id, a.params)) == list(map(id, b.params)) and all(map(torch.equal, a.values, b.values))


class _Nudged:
    """Within ``with``, parameters of a model are moved by noise from where they are, and back afterwards."""

    def __init__(self, params: Sequence[Tensor], model: nn.Module) -> None:
        self._params, self._model = params, model

    def __enter__(self) -> None:
        streams = {d: torch.Generator(d).manual_seed(0) for d in {p.device for p in self._params}}
        weights = shards.local_parts([p.data for p in self._params])
        sizes = [tensors.norm([w], ()) / math.sqrt(max(1, w.numel())) for w in weights]
        directions = [
            shards.normal_like(p, streams[p.device]) * (size if float(size) > 0 else 1.0)
            for p, size in zip(self._params, sizes, strict=True)
        ]
        displacement = Displacement(lambda: (*self._model.parameters(), *self._model.buffers()))
        self._displaced = displacement(self._params, directions, [torch.tensor(NUDGE)] * len(directions))
        self._displaced.__enter__()

    def __exit__(self, *_: object) -> None:
        self._displaced.__exit__()


def _memory(tensor: Tensor) -> int:
    """Where a tensor's elements lie, which views and aliases share; its identity if nowhere."""
    try:
        return shards.local(tensor.detach()).untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):  # inside of torch.func
        return id(tensor)


_READ_BY = tuple(f".{name}.__get__" for name in ("data", "T", "mT", "H", "mH", "real", "imag"))
_NO_READS = {
    *("backward", "grad", "requires_grad_", "retain_grad", "register_hook", "register_post_accumulate_grad_hook"),
    *("size", "stride", "dim", "numel", "element_size", "data_ptr", "untyped_storage", "is_contiguous"),
    *("is_floating_point", "is_complex", "__len__", "__hash__"),
}


class _Reads(TorchFunctionMode):
    """Notes which parameters are given to an operation while it is active."""

    def __init__(self, params: Sequence[Tensor]) -> None:
        self._unread = list(params)

    def unread(self) -> list[Tensor]:
        """The others."""
        return self._unread

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        accessor = name in ("__get__", "__set__", "__delete__")
        if (resolve_name(func) or "").endswith(_READ_BY) if accessor else name not in _NO_READS:
            self._note([args, kwargs])
        return func(*args, **(kwargs or {}))

    def _note(self, given: Any) -> None:
        if isinstance(given, Tensor):
            memory = _memory(given)
            self._unread = [p for p in self._unread if p is not given and _memory(p) != memory]
        elif isinstance(given, (list, tuple)):
            for item in given:
                self._note(item)
        elif isinstance(given, dict):
            self._note(list(given.values()))


_INSIDE = (
    "Compute the loss, and every layer whose weights are trained, inside the closure (in a Trainer: inside forward and "
    "loss) and from the parameters themselves: not before the step, not from copies (detach(), torch.func, cached "
    "weights), and not by replaying a captured graph."
)


def _what_is_unseen(params: Sequence[Tensor], model: nn.Module) -> str:
    names = [name.name or "a parameter" for name in Names(lambda: model)(params)]
    which = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    return (
        f"The closure does not see the perturbed weights of {which}: moving them changes neither the loss that it "
        f"returns nor any gradient, and the step would be plain training. {_INSIDE}"
    )


def _warn_of_small_radius(params: Sequence[Tensor]) -> None:
    precisions = ", ".join(sorted({str(p.dtype) for p in params}))
    warnings.warn(
        "At the perturbed weights the loss and all gradients are bit for bit those at the weights themselves, while a "
        f"larger perturbation changes them: rho is too small for the precision of the weights ({precisions}) or of the "
        "passes (autocast). Steps like this are plain training: raise rho, or keep weights in float32.",
        stacklevel=2,
    )


_STALE = ("modified by an inplace operation", "backward through the graph a second time")


def explain_stale_graph(error: RuntimeError) -> None:
    """Say what to do if a repeated or displaced pass failed because it goes back through a graph from before.

    Raises:
        RuntimeError: If so, from ``error``.
    """
    if any(message in str(error) for message in _STALE):
        raise RuntimeError(
            f"The closure went back through a graph that was built before it was called, or before the weights were "
            f"perturbed. {_INSIDE}"
        ) from error
