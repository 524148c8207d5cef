"""Running a later pass so that it sees what the first saw, and leaves no trace.

All passes of a step must draw the same dropout masks and MixUp coefficients, and whatever training counts once per
batch (BatchNorm's running statistics, spectral norm's power iteration, the random stream itself) must be left as one
pass leaves it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sam_algos.core import shards, tensors
from sam_algos.core.selection import tensors_in
from sam_algos.core.state import Keepers, ModuleState
from sam_algos.core.streams import RandomStreams

__all__ = ["Replay", "fresh_shards", "refuse_fsdp1"]


class Replay:
    """Records what the first pass starts from, and runs later ones from there.

    Put back are the global random streams of Python, NumPy and PyTorch; buffers (BatchNorm is told not to track,
    which costs nothing); what modules that are not PyTorch's own keep in their attributes: numbers, tensors, lists,
    dictionaries, sets, generators; parameters outside the optimizer that the model changes itself, as momentum
    encoders do, from the second step on; and any tensor of the batch that was transformed in place. What is kept
    elsewhere (a global variable, an object of another kind) counts every pass.
    """

    def __init__(self) -> None:
        self._model: Any = None
        self._keepers = Keepers()
        self._changing: list[Tensor] = []
        self._checked: tuple[Sequence[Tensor], Tensor] | None = None
        self._batch: list[tuple[Tensor, int, Tensor]] = []
        self._before: Any = None

    def __reduce__(self) -> Any:
        """Copy and pickle as a new one: what was found are parts of the original's model."""
        return Replay, ()

    def record(self, model: nn.Module, params: Sequence[Tensor], batch: Any = None, *, narrowed: bool = False) -> None:
        """Record the state that the first pass is about to start from.

        Args:
            model: The model.
            params: The optimizer's parameters.
            batch: The batch, where the pass may transform it in place.
            narrowed: Whether the pass sees fewer samples than a later one will. What one pass draws and counts is
                then taken from the later, which sees what a step without a method would.
        """
        self._model, self._narrowed = model, narrowed
        self._devices = {p.device for p in params}
        self._keepers.look(model)
        if self._keepers.fresh:
            self._begin_check(params)
        self._batch = [(tensor, tensor._version, tensor.clone()) for tensor in tensors_in(batch)]
        self._before = ModuleState(self._keepers, self._changing)
        self._streams = RandomStreams.record(self._devices)

    def _begin_check(self, params: Sequence[Tensor]) -> None:
        """Note what parameters outside the optimizer are, to find those that the model changes itself."""
        trained = set(map(id, params))
        others = [p for p in self._model.parameters() if id(p) not in trained and _is_plain(p)]
        still = set(map(id, others))
        self._changing = [p for p in self._changing if id(p) in still]
        self._checked = (others, tensors.norms([p.data for p in others], ())) if others else None

    def _end_check(self) -> None:
        if self._checked is not None:
            (others, before), self._checked = self._checked, None
            changed = tensors.norms([p.data for p in others], ()) != before
            found = {id(p): p for p, yes in zip(others, changed.tolist(), strict=True) if yes}
            self._changing = list({**{id(p): p for p in self._changing}, **found}.values())

    @contextmanager
    def again(self) -> Iterator[None]:
        """Run the body as a repetition of the first pass that leaves no trace of its own."""
        self._end_check()
        self._keepers.look(self._model)  # the first pass may have registered buffers
        after, streams = ModuleState(self._keepers, self._changing), RandomStreams.record(self._devices)
        tracking = [norm for norm in self._keepers.norms if norm.track_running_stats]
        attributes = True
        try:
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
            for norm in tracking:
                vars(norm)["track_running_stats"] = True
            after.restore(attributes=attributes)
            streams.restore()

    def forget(self) -> None:
        """Let go of what was recorded: the step is over."""
        self._batch, self._before = [], None


def _is_plain(p: Tensor) -> bool:
    return (p.is_floating_point() or p.is_complex()) and not shards.is_sharded([p])


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
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # which takes more than a second to import
    for module in model.modules() if fsdp is not None else ():
        if isinstance(module, fsdp.FSDPModule):
            sharded: Any = module
            sharded.reshard()


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
