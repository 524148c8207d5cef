"""BatchNorm recalibration inside Composer's Trainer."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
from composer.core import Algorithm, DataSpec, Event, State, ensure_data_spec
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from torch import nn
from torch.utils.data import DataLoader

from sam_algos.batchnorm import Statistics, recalibrate, recalibrated_layers
from sam_algos.core.options import Options, PositiveInt, Range
from sam_algos.core.tensors import shards
from sam_algos.core.tensors.vector import Vector
from sam_algos.trainer.instances import refuse_class

__all__ = ["RecalibrateBatchNorm"]

_Loader = Annotated[
    Any,
    Range(
        "an iterable of batches, or a DataSpec",
        lambda v: v is None or isinstance(v, DataSpec) or (hasattr(v, "__iter__") and not isinstance(v, str)),
    ),
]


_EVENTS = frozenset(
    {
        Event.INIT,
        Event.FIT_START,
        Event.BEFORE_TRAIN_BATCH,
        Event.AFTER_FORWARD,
        Event.EVAL_BEFORE_ALL,
        Event.EVAL_STANDALONE_START,
        Event.EVAL_START,
        Event.BATCH_CHECKPOINT,
        Event.EPOCH_CHECKPOINT,
    }
)


@dataclass(repr=False, eq=False)
class RecalibrateBatchNorm(Options, Algorithm):
    """Recompute BatchNorm's running statistics by forward passes over training data (see `sam_algos.recalibrate`).

    **Use it** with Momentum-SAM, RandomSAM and ``ascent_fraction``, which gather the statistics at displaced weights or
    on a fraction of the batch. Other methods gather them at the clean weights, on whole batches.

    **At the end of fit** the statistics are recomputed once and kept. This happens before the last evaluation if that
    is due at the end of an epoch or batch, otherwise before the last checkpoint. So the last checkpoint, the evaluation
    and the model agree. A later ``fit()`` continues with the same parameters as without recalibration; its statistics
    forget the recalibration at the rate of their momentum.

    **With** ``evaluations="all"`` every evaluation sees recalibrated statistics too, and training gets its own back
    afterwards. Checkpoints before the last hold training's own statistics, so a run resumed from them equals the
    uninterrupted run. With ``EMA`` all of this applies to the averaged weights, wherever Composer evaluates or saves
    them. A model that ``SWA`` replaced is recalibrated as it is, which SWA itself does not do.

    **Data** are the first batches of the training dataloader in the current epoch's order, with the transforms of its
    ``DataSpec`` but without the changes of algorithms (MixUp). The dataloader, its worker processes and the random
    streams go on as if nothing had happened, unless the dataset itself holds a random generator. The statistics are
    averaged over the batches of all processes.

    **Cost.** ``batches`` forward passes without gradients, at the end or for each evaluator of every evaluation;
    logged as ``recalibration/forwards``, in units of a forward pass over a batch.

    Args:
        batches (int): The number of batches per process, or one epoch if that is shorter. Default: ``200``, as in
            fvcore's ``update_bn_stats``. It bounds the cost on large data; the error of a mean falls with its square
            root.
        evaluations (str): ``'last'`` or ``'all'``. Default: ``'last'``, which costs as much as evaluating once.
        dataloader (Iterable | DataSpec, optional): Separate data, for a ``train_dataloader`` that cannot be iterated
            twice at once (streaming). Default: the training dataloader.

    Raises:
        ValueError: If an argument is outside its range. At the first recalibration, if there is no training dataloader,
            or if its ``DataSpec`` is ambiguous.

    Example:
        >>> RecalibrateBatchNorm(batches=50, evaluations="all")
        RecalibrateBatchNorm(batches=50, evaluations='all')
    """

    batches: PositiveInt = 200
    evaluations: Literal["last", "all"] = "last"
    dataloader: _Loader = field(default=None, kw_only=True, repr=False)

    _layers: Any = field(default=None, init=False)  # the layers that training updates
    _counts: bool = field(default=False, init=False)  # whether the next pass is a step's first, which shows the layers
    _ended: bool = field(default=False, init=False)  # whether training had ended before the evaluation
    _before: Statistics | None = field(default=None, init=False)  # training's own, during an evaluation
    _done: tuple[int, float] | None = field(default=None, init=False)  # the weights of the statistics to keep

    @refuse_class
    def match(self, event: Event, state: State) -> bool:
        """Run on :attr:`.Event.INIT`, and around evaluations and checkpoints."""
        return event in _EVENTS

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Recalibrate where `evaluations` asks for it; at the end of training keep the result."""
        if event == Event.INIT:
            self._surround(state)
        elif event == Event.FIT_START:
            self.put_back()  # in case an evaluation was interrupted
        elif event == Event.BEFORE_TRAIN_BATCH:
            self._counts = True  # not set in repeated passes, in which BatchNorm does not track
        elif event == Event.AFTER_FORWARD:
            if self._counts:
                self._layers = recalibrated_layers(state.model)  # now: Composer soon sets all to training mode
            self._counts = False
        elif event in (Event.EVAL_BEFORE_ALL, Event.EVAL_STANDALONE_START):
            self._ended = _ended(state)  # now: during evaluation the state has another dataloader
        elif self._ended if event == Event.EVAL_START else _ended(state):
            if not _same(self._done, now := _weights(state)):
                self._gather(state, logger)
                self._done = now
        elif event == Event.EVAL_START and self.evaluations == "all":
            before = Statistics(self._layers or recalibrated_layers(state.model))
            self._gather(state, logger)
            self._before = before

    def put_back(self) -> None:
        """Restore training's own statistics."""
        if self._before is not None:
            self._before.restore()
            self._before = None

    def state_dict(self) -> dict[str, Any]:
        """The weights that the model's statistics belong to."""
        return {"repr": repr(self), "done": self._done}

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Restore which weights the model's statistics belong to."""
        self._done = None if state.get("done") is None else tuple(state["done"])

    def _surround(self, state: State) -> None:
        """Give this Trainer its own instance, after all other algorithms, so that EMA has swapped its weights in."""
        own = replace(self)
        state.algorithms = [_PutBack(own), *(a for a in state.algorithms if a is not self), own]

    def _gather(self, state: State, logger: Logger) -> None:
        given = _training_data(state) if self.dataloader is None else self.dataloader
        spec = given if isinstance(given, DataSpec) else ensure_data_spec(_twin(given))
        data, run = _twin(spec.dataloader), _Forward(state, spec)
        with _generators_put_back(data):
            count = recalibrate(state.model, data, limit=self.batches, forward=run, layers=self._layers)
        if count:
            logger.log_metrics({"recalibration/forwards": count})


class _PutBack(Algorithm):
    """Runs before all other algorithms, so that the statistics are restored before EMA swaps its weights out."""

    def __init__(self, recalibration: RecalibrateBatchNorm | None = None) -> None:
        self._recalibration = recalibration

    def match(self, event: Event, state: State) -> bool:
        return event == Event.EVAL_END

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        if self._recalibration is not None:
            self._recalibration.put_back()

    def __repr__(self) -> str:
        return "_PutBack()"


class _Forward:
    """Runs a model on a batch as the Trainer does."""

    def __init__(self, state: State, spec: DataSpec) -> None:
        self._state, self._spec = state, spec

    def __call__(self, model: nn.Module, batch: Any) -> None:
        state, spec = self._state, self._spec
        batch, size = spec.batch_transforms(batch), state.device_train_microbatch_size
        if size is None or spec.get_num_samples_in_batch(batch) <= size:
            parts = [batch]
        else:
            parts = spec.split_batch(batch, size)
        for part in parts:
            part = spec.microbatch_transforms(state.device.batch_to_device(part))
            with get_precision_context(state.precision, state.precision_config):
                model(part)


def _ended(state: State) -> bool:
    """Whether no batch follows. An epoch ends with its last batch, when Composer evaluates and saves."""
    now, length = state.timestamp, state.dataloader_len
    if length is not None and now.batch_in_epoch.value >= max(1, length.value):
        now = now.to_next_epoch()
    return state.max_duration is not None and now >= state.max_duration


def _weights(state: State) -> tuple[int, float]:
    """A fingerprint of the weights, equal on all processes. The batch alone is not enough: EMA and SWA swap weights."""
    params = list(state.model.parameters())
    return state.timestamp.batch.value, float(Vector(params, shards.local_parts([p.data for p in params])).norm())


def _same(a: tuple[int, float] | None, b: tuple[int, float]) -> bool:
    """Whether two fingerprints match. The norm's last digits may differ between devices."""
    return a is not None and a[0] == b[0] and math.isclose(a[1], b[1], rel_tol=1e-6)


def _training_data(state: State) -> DataSpec:
    """The training dataloader with the transforms that training applies."""
    loader = state.train_dataloader
    refusal = "RecalibrateBatchNorm(dataloader=None): dataloader must be given where the "
    if loader is None:
        raise ValueError(f"{refusal}Trainer has no train_dataloader.")
    # Composer's Trainer hides its DataSpec, and without its transforms the statistics would describe other data.
    found = [s for s in gc.get_objects() if issubclass(type(s), DataSpec) and s.dataloader is loader]
    evaluated = {id(evaluator.dataloader) for evaluator in state.evaluators}
    found = [s for s in found if id(s) not in evaluated] or found
    if not found or any(_functions(s) != _functions(found[0]) for s in found):
        raise ValueError(f"{refusal}train_dataloader belongs to {len(found)} DataSpecs with different transforms.")
    return found[0]


def _functions(spec: DataSpec) -> tuple[Any, ...]:
    """The functions that a DataSpec applies to a batch. Defaults are bound methods, so compare the functions."""
    functions = spec.batch_transforms, spec.microbatch_transforms, spec.split_batch, spec.get_num_samples_in_batch
    return tuple(getattr(f, "__func__", f) if getattr(f, "__self__", None) is spec else f for f in functions)


def _twin(loader: Any) -> Any:
    """The same data with a separate iterator: with persistent workers a loader has only one, which training uses."""
    if not isinstance(loader, DataLoader):
        return loader
    twin = copy.copy(loader)
    vars(twin).update(persistent_workers=False, _iterator=None)  # a DataLoader refuses assignments
    return twin


@contextmanager
def _generators_put_back(loader: Any) -> Iterator[None]:
    """Run the body, then restore the random generators that a DataLoader and its samplers were given."""
    samplers = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
    holders = [loader, *samplers, *(getattr(sampler, "sampler", None) for sampler in samplers)]
    found = [getattr(holder, "generator", None) for holder in holders]
    states = [(g, g.get_state()) for g in found if isinstance(g, torch.Generator)]
    try:
        yield
    finally:
        for generator, state in states:
            generator.set_state(state)
