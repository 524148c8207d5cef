"""Recompute BatchNorm's running statistics at the final weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from sam_algos.core.passes.randomness import RandomStreams
from sam_algos.core.passes.replay import fresh_shards
from sam_algos.core.tensors import shards

__all__ = ["Statistics", "recalibrate", "recalibrated_layers"]


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    limit: int | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    layers: Iterable[nn.Module] | None = None,
) -> int:
    """Recompute BatchNorm's running statistics at the model's weights, as the plain average over ``batches``.

    For ``n`` batches with means ``m_i`` and unbiased variances ``v_i`` of a layer's inputs, ``running_mean`` becomes
    ``Σ m_i / n`` and ``running_var`` becomes ``Σ v_i / n``. Training averages at the weights
    that its passes ran at, which are displaced with Momentum-SAM, and over few samples with ``ascent_fraction``. This
    function averages at the weights that are evaluated.

    Only the recomputed layers run in training mode. Dropout stays off, so that the statistics match the network as it
    is evaluated (with dropout before BatchNorm they differ). ``torch.optim.swa_utils.update_bn`` leaves dropout
    on, and recomputes frozen layers too.

    Everything else is restored: the mode of every module, momenta, the global random streams (which loading ``batches``
    may draw from) and gradients. If a batch raises, the statistics are restored, too.

    **Cost.** One forward pass without gradients per batch.

    Args:
        model (torch.nn.Module): The model. Under ``DistributedDataParallel`` or FSDP2 every process must call this
            with its own batches, and gets the average over all batches. Under FSDP2 every process must have the same
            number of batches.
        batches (Iterable): Training data. Larger batches are better; ``BatchNorm`` needs at least two samples.
        limit (int, optional): Maximum number of batches; 200 is usual (fvcore's ``update_bn_stats``). Default: all.
        forward (Callable, optional): ``forward(model, batch)`` runs the model on a batch, on the right device and in
            the right precision. Default: ``model(batch)``, or ``model(batch[0])`` if the batch is a tuple or list.
        layers (Iterable[torch.nn.Module], optional): The BatchNorm layers to recompute. Default: those in training
            mode, so that frozen ones keep their statistics; all if the whole model is in evaluation mode. Layers
            with momentum 0 or without running statistics are left out.

    Returns:
        int: The number of batches run. If there is no layer to recompute it is 0, and no batch is loaded.

    Raises:
        ValueError: If ``batches`` is empty, or ``limit`` is not an integer >= 1.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1), torch.nn.Linear(1, 1))
        >>> recalibrate(model, [torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [5.0]])])
        2
        >>> model[0].running_mean, model[0].running_var
        (tensor([2.5000]), tensor([2.]))
    """
    if limit is not None and not (type(limit) is int and limit >= 1):
        raise ValueError(f"recalibrate(limit={limit!r}): limit must be an integer >= 1, or None.")
    chosen = recalibrated_layers(model) if layers is None else list(layers)
    norms = [m for m in _norms(model) if any(m is layer for layer in chosen)]
    return _gather(model, batches, limit, forward or _first_entry, norms) if norms else 0


def recalibrated_layers(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that `recalibrate` chooses by default, given the mode of the model and its layers."""
    return [m for m in _norms(model) if m.training or not model.training]


def _norms(model: nn.Module) -> list[_BatchNorm]:
    found = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    return [m for m in found if m.running_mean is not None and m.track_running_stats and m.momentum != 0]


def _first_entry(model: nn.Module, batch: Any) -> Any:
    return model(batch[0] if isinstance(batch, (list, tuple)) else batch)


class Statistics:
    """A copy of the running statistics of BatchNorm layers.

    Args:
        layers: The layers to copy.
    """

    def __init__(self, layers: Iterable[_BatchNorm]) -> None:
        self._values = {m: [(b, b.clone()) for b in m.buffers(recurse=False)] for m in layers}

    def restore(self, only: Iterable[_BatchNorm] | None = None) -> None:
        """Restore the statistics of ``only``, or of all layers."""
        for layer in self._values if only is None else only:
            for buffer, value in self._values[layer]:
                buffer.copy_(value)


@torch.no_grad()
def _gather(
    model: nn.Module,
    batches: Iterable[Any],
    limit: int | None,
    forward: Callable[[nn.Module, Any], Any],
    layers: Sequence[_BatchNorm],
) -> int:
    # DistributedDataParallel would overwrite the statistics with the first process's before each pass.
    inner: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    before, count = Statistics(layers), 0
    try:
        with _averaging(inner, layers), fresh_shards(inner):
            for layer in layers:
                layer.reset_running_stats()
            for batch in islice(batches, limit):  # inside _averaging: the iterator may draw a seed
                forward(inner, batch)
                count += 1
        if not count:
            raise ValueError("recalibrate(batches=...): batches must hold at least one batch.")
        if isinstance(model, DistributedDataParallel):
            _average(layers, model.process_group)
        elif shards.is_sharded(list(model.parameters())):
            _average(layers, None)
        before.restore([m for m in layers if not m.num_batches_tracked])  # no pass reached these layers
    except BaseException:
        before.restore()
        raise
    return count


@contextmanager
def _averaging(model: nn.Module, layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Run the body with ``layers`` averaging and all else in evaluation mode; restore the random streams after it."""
    modes = [(m, m.training) for m in model.modules()]
    momenta = [m.momentum for m in layers]
    streams = RandomStreams.record({p.device for p in model.parameters()})
    try:
        for module, _ in modes:
            module.training = False  # not eval(), which modules may override, and which recurses into children
        for layer in layers:
            layer.training, layer.momentum = True, None  # None: the plain average
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes:
            module.training = mode
        streams.restore()


def _average(layers: Sequence[_BatchNorm], group: Any) -> None:
    """Average over all batches of all processes."""
    for layer in layers:
        counted: Any = layer.num_batches_tracked
        weighted: list[Any] = [layer.running_mean, layer.running_var]
        for value in weighted:
            value.mul_(counted)
            dist.all_reduce(value, group=group)
        dist.all_reduce(counted, group=group)
        for value in weighted:
            value.div_(counted.clamp(min=1))
