"""Running a later pass so that it sees what the first saw, and leaves no trace.

All passes of a step must draw the same dropout masks and MixUp coefficients, and whatever training counts once per
batch (BatchNorm's running statistics, spectral norm's power iteration, the random stream itself) must be left as one
pass leaves it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sam_algos.core.passes.modules import Keepers, ModuleState
from sam_algos.core.passes.randomness import RandomStreams
from sam_algos.core.passes.selection import tensors_in
from sam_algos.core.profiling import within
from sam_algos.core.tensors import lists as tensors
from sam_algos.core.tensors import shards

__all__ = ["FreshCaches", "Replay", "fresh_shards"]

_DEVICE = attrgetter("device")


class Replay:
    """Records what the first pass starts from, and runs later ones from there.

    Put back are the global random streams of Python, NumPy and PyTorch; buffers (BatchNorm is told not to track,
    which costs nothing); what modules that are not PyTorch's own keep in their attributes: numbers, tensors, lists,
    dictionaries, sets, generators; parameters outside the optimizer that the model changes itself, as momentum
    encoders do, from the second step on; any tensor of the batch that was transformed in place; and the attributes of
    objects that the program names. What is kept elsewhere (a global variable, another object) counts every pass.
    """

    def __init__(self) -> None:
        self._program: list[dict[str, Any]] = []
        self._model: Any = None
        self._keepers = Keepers()
        self._ids: list[int] = []
        self._params: Sequence[Tensor] = ()
        self._trained: set[int] | None = None  # where trained parameters lie, found when needed
        self._others: list[Tensor] = []
        self._unchecked = True
        self._changing: list[Tensor] = []
        self._norms: Tensor | None = None
        self._batch: list[tuple[Tensor, int, Tensor]] = []
        self._before: Any = None

    def __reduce__(self) -> Any:
        """Copy and pickle as a new one: what was found are parts of the original's model and program."""
        return Replay, ()

    def record(
        self,
        model: nn.Module,
        params: Sequence[Tensor],
        batch: Any = None,
        *,
        narrowed: bool = False,
        objects: Iterable[object] = (),
    ) -> None:
        """Record the state that the first pass is about to start from.

        Args:
            model: The model.
            params: The optimizer's parameters.
            batch: The batch, where the pass may transform it in place.
            narrowed: Whether the pass sees fewer samples than a later one will. What one pass draws and counts is
                then taken from the later, which sees what a step without a method would.
            objects: The program's objects whose attributes are put back.
        """
        self._model, self._narrowed, self._params, self._trained = model, narrowed, params, None
        within("sam/replay", self._record, batch, objects)

    def _record(self, batch: Any, objects: Iterable[object]) -> None:
        params = self._params
        self._devices = set(map(_DEVICE, params))
        self._look_at_others(params)
        self._batch = [(t, t._version, t.clone()) for t in tensors_in(batch)] if batch is not None else []
        self._program = [vars(kept) for kept in objects if hasattr(kept, "__dict__")]
        self._before = self._state()
        self._streams = RandomStreams.record(self._devices)

    def _state(self, *, shortens: bool = False) -> ModuleState | None:
        """What is kept now; None where nothing that could be put back is."""
        if not (self._keepers.buffers or self._keepers.attributes or self._changing or self._program):
            return None
        return ModuleState(self._keepers, self._changing, self._where_trained(), self._program, shortens=shortens)

    def _where_trained(self) -> set[int]:
        """Where the trained parameters lie in memory."""
        if self._trained is None:
            self._trained = {p.untyped_storage().data_ptr() for p in shards.local_parts([p.data for p in self._params])}
        return self._trained

    def _look_at_others(self, params: Sequence[Tensor]) -> None:
        """Find the model's parameters outside the optimizer, and note what they are, to find those that change."""
        self._keepers.look(self._model)
        ids = list(map(id, params))
        if self._keepers.fresh or ids != self._ids:
            trained, self._ids, self._unchecked = set(ids), ids, True
            self._others = [p for p in self._model.parameters() if id(p) not in trained]
            known = set(map(id, self._others))
            self._changing = [p for p in self._changing if id(p) in known]
        if self._unchecked and self._others:
            self._norms = _norms(self._plain_others())

    def _plain_others(self) -> list[Tensor]:
        trained = self._where_trained()
        return [p for p in self._others if _is_plain(p) and p.untyped_storage().data_ptr() not in trained]

    def _end_check(self) -> None:
        """Once for each set of others: which of them did the first pass change?"""
        if self._norms is not None:
            others = self._plain_others()
            changed = (_norms(others) != self._norms).tolist()
            known = {id(p) for p in self._changing}
            self._changing += [p for p, yes in zip(others, changed, strict=True) if yes and id(p) not in known]
            self._norms = None
        self._unchecked = False

    def again(self) -> Replay:
        """Itself, for ``with replay.again():``, whose body repeats the first pass and leaves no trace of its own."""
        return self

    def __enter__(self) -> None:
        within("sam/replay", self._go_back)

    def __exit__(self, error: object, *_: object) -> None:
        within("sam/replay", self._return, completed=error is None)

    def _go_back(self) -> None:
        """To what the first pass started from."""
        self._end_check()
        self._keepers.look(self._model)  # the first pass may have registered buffers
        self._after, self._streams_after = self._state(shortens=True), RandomStreams.record(self._devices)
        self._tracking = [norm for norm in self._keepers.norms if norm.track_running_stats]
        self._gradients = [(p, p.grad) for p in self._others] if self._others else []  # of another optimizer, say
        try:
            for p in self._others:
                p.grad = None
            for tensor, version, original in self._batch:
                if tensor._version != version:
                    tensor.copy_(original)
            if self._before is not None:
                self._before.restore(keep_new_buffers=True)
            for norm in self._tracking:
                vars(norm)["track_running_stats"] = False  # as the attribute is set, without nn.Module's bookkeeping
            self._streams.restore()
        except BaseException:
            self._return(completed=False)
            raise

    def _return(self, *, completed: bool) -> None:
        """To what the first pass left."""
        streams, after, attributes = self._streams_after, self._after, True
        if self._narrowed and completed:  # this pass drew and counted what a step without a method would
            streams, attributes = RandomStreams.record(self._devices), False
        streams.restore()
        for p, gradient in self._gradients:
            p.grad = gradient
        for norm in self._tracking:
            vars(norm)["track_running_stats"] = True
        if after is not None:
            after.restore(attributes=attributes)
        self._after, self._gradients, self._tracking = None, [], []

    def forget(self) -> None:
        """Let go of what was recorded: the step is over."""
        self._batch, self._before, self._norms, self._program, self._params = [], None, None, [], ()


def _norms(params: Sequence[Tensor]) -> Tensor:
    return tensors.norms([p.data for p in params], ()) if params else torch.zeros(0)


def _is_plain(p: Tensor) -> bool:
    return (p.is_floating_point() or p.is_complex()) and not shards.is_sharded([p])


class FreshCaches:
    """Within ``with FreshCaches():`` a pass finds no weights that PyTorch cached in another, and leaves none itself.

    Autocast keeps weights in half precision; ``parametrize.cached()`` keeps parametrized ones, with a graph that one
    backward pass uses up.
    """

    def __enter__(self) -> None:
        torch.clear_autocast_cache()
        self._kept = dict(parametrize._cache) if parametrize._cache_enabled else None
        if self._kept is not None:
            parametrize._cache.clear()

    def __exit__(self, *_: object) -> None:
        torch.clear_autocast_cache()
        if self._kept is not None:
            parametrize._cache.clear()
            parametrize._cache.update(self._kept)


@contextmanager
def fresh_shards(model: nn.Module) -> Iterator[None]:
    """Run a pass of a model that FSDP2 shards on what its shards hold now, and leave none of it gathered.

    FSDP2 keeps what a forward without a backward pass had gathered, as an evaluation before the step, and computes the
    next pass with it; so it does after a forward that failed.
    """
    _reshard(model)
    try:
        yield
    except BaseException:
        model.state_dict()  # its hook drops what is gathered wherever that was; reshard() would not, in a forward
        raise
    _reshard(model)


def _reshard(model: nn.Module) -> None:
    sharded = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())  # takes a second to import
    for module in model.modules() if sharded else ():
        if isinstance(module, sharded):
            cast(Any, module).reshard()
