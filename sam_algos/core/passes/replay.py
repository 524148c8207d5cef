"""Running a later pass so that it sees what the first saw, and leaves no trace.

All passes of a step must draw the same dropout masks and MixUp coefficients, and whatever training counts once per
batch (BatchNorm's running statistics, spectral norm's power iteration, the random stream itself) must be left as one
pass leaves it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sam_algos.core.passes.modules import Keepers, ModuleState
from sam_algos.core.passes.randomness import RandomStreams
from sam_algos.core.passes.selection import tensors_in
from sam_algos.core.tensors import lists as tensors
from sam_algos.core.tensors import shards

__all__ = ["Replay", "fresh_caches", "fresh_shards", "refuse_fsdp1"]


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
        self._params: list[int] = []
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
        self._model, self._narrowed = model, narrowed
        self._devices = {p.device for p in params}
        self._trained = {shards.local(p.data).untyped_storage().data_ptr() for p in params}
        self._look_at_others(params)
        self._batch = [(tensor, tensor._version, tensor.clone()) for tensor in tensors_in(batch)]
        self._program = [vars(kept) for kept in objects if hasattr(kept, "__dict__")]
        self._before = ModuleState(self._keepers, self._changing, self._trained, self._program)
        self._streams = RandomStreams.record(self._devices)

    def _look_at_others(self, params: Sequence[Tensor]) -> None:
        """Find the model's parameters outside the optimizer, and note what they are, to find those that change."""
        self._keepers.look(self._model)
        ids = list(map(id, params))
        if self._keepers.fresh or ids != self._params:
            trained, self._params, self._unchecked = set(ids), ids, True
            self._others = [p for p in self._model.parameters() if id(p) not in trained]
            known = set(map(id, self._others))
            self._changing = [p for p in self._changing if id(p) in known]
        if self._unchecked and self._others:
            self._norms = _norms(self._plain_others())

    def _plain_others(self) -> list[Tensor]:
        return [p for p in self._others if _is_plain(p) and p.untyped_storage().data_ptr() not in self._trained]

    def _end_check(self) -> None:
        """Once for each set of others: which of them did the first pass change?"""
        if self._norms is not None:
            others = self._plain_others()
            changed = (_norms(others) != self._norms).tolist()
            known = {id(p) for p in self._changing}
            self._changing += [p for p, yes in zip(others, changed, strict=True) if yes and id(p) not in known]
            self._norms = None
        self._unchecked = False

    @contextmanager
    def again(self) -> Iterator[None]:
        """Run the body as a repetition of the first pass that leaves no trace of its own."""
        self._end_check()
        self._keepers.look(self._model)  # the first pass may have registered buffers
        after = ModuleState(self._keepers, self._changing, self._trained, self._program, shortens=True)
        streams = RandomStreams.record(self._devices)
        tracking = [norm for norm in self._keepers.norms if norm.track_running_stats]
        gradients = [(p, p.grad) for p in self._others]  # of another optimizer, say
        attributes = True
        try:
            for p in self._others:
                p.grad = None
            for tensor, version, original in self._batch:
                if tensor._version != version:
                    tensor.copy_(original)
            self._before.restore(keep_new_buffers=True)
            for norm in tracking:
                vars(norm)["track_running_stats"] = False  # as the attribute is set, without nn.Module's bookkeeping
            self._streams.restore()
            yield
            if self._narrowed:
                streams, attributes = RandomStreams.record(self._devices), False
        finally:
            streams.restore()
            for p, gradient in gradients:
                p.grad = gradient
            for norm in tracking:
                vars(norm)["track_running_stats"] = True
            after.restore(attributes=attributes)

    def forget(self) -> None:
        """Let go of what was recorded: the step is over."""
        self._batch, self._before, self._norms, self._program = [], None, None, []


def _norms(params: Sequence[Tensor]) -> Tensor:
    return tensors.norms([p.data for p in params], ()) if params else torch.zeros(0)


def _is_plain(p: Tensor) -> bool:
    return (p.is_floating_point() or p.is_complex()) and not shards.is_sharded([p])


@contextmanager
def fresh_caches() -> Iterator[None]:
    """Run a pass without the weights that PyTorch has cached in another, and let none of its own survive.

    Autocast keeps weights in half precision; ``parametrize.cached()`` keeps parametrized ones, with a graph that one
    backward pass uses up.
    """
    torch.clear_autocast_cache()
    cached = getattr(parametrize, "_cache_enabled", 0) > 0
    kept = dict(parametrize._cache) if cached else {}
    if cached:
        parametrize._cache.clear()
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        if cached:
            parametrize._cache.clear()
            parametrize._cache.update(kept)


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
