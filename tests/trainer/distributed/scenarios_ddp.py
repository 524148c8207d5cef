"""Replicated parameters: DistributedDataParallel on two processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer.core import Event
from composer.utils import dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sam_algos import METHODS
from sam_algos.trainer import RecalibrateBatchNorm
from tests.trainer.distributed.tasks import (
    KINDS,
    STEPS,
    Partial,
    closure,
    dense,
    loader,
    method,
    noisy,
    outcome,
    samples,
    train,
    trainer,
    weights,
)
from tests.trainer.training import On

NEEDS_PROCESS_GROUP = True
BAD_STEP = 2  # whose samples contain a NaN on the last rank

LOOPS = ("sam", "looksam", "friendlysam")
"""One that climbs by a gradient of its own, one that keeps the gradient, one that remembers it."""

VIEWS = (*KINDS, "gsam", "vasso")
"""Also those that keep a gradient as it is through a pass, and that remember an average of them."""

ORACLES = ("sam", "asam", "looksam", "looklayersam", "aesam", "aelooksam")

MODELS: dict[str, Callable[[], nn.Module]] = {"dense": dense, "noisy": noisy, "partial": Partial}


@contextmanager
def recorded_passes() -> Iterator[list[bool]]:
    """For each forward, whether its gradient will be synchronised."""
    synced: list[bool] = []
    forward = DistributedDataParallel.forward

    def recording(self: DistributedDataParallel, *args: Any, **kwargs: Any) -> Any:
        synced.append(self.require_backward_grad_sync)
        return forward(self, *args, **kwargs)

    DistributedDataParallel.forward = recording
    try:
        yield synced
    finally:
        DistributedDataParallel.forward = forward


def replicas(name: str, model: str, folder: Path) -> dict[str, Any]:
    return train(method(name), module=MODELS[model])


def resume(name: str, folder: Path) -> dict[str, Any]:
    saved = train(method(name), module=noisy, save_folder=str(folder), save_interval="4ba")
    resumed = trainer(method(name), module=noisy, load_path=str(folder / "ep0-ba4-rank0.pt"))
    resumed.fit()
    return {"whole": saved, "resumed": outcome(resumed)}


def precise(name: str, synchronize: bool, folder: Path, fraction: float = 1.0, **options: Any) -> dict[str, Any]:
    """In float64, without momentum where the method needs none: what an oracle can follow."""
    used = method(name, synchronize=synchronize, ascent_fraction=fraction)
    with recorded_passes() as synced:
        sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9 * (name == "momentumsam"))
        result = train(used, dtype=torch.float64, optimizer=sgd, **options)
    return {**result, "synced": synced}


def bad_samples(name: str, folder: Path) -> dict[str, Any]:
    x, y = samples()
    x[8 * BAD_STEP + 1] = torch.nan  # odd samples go to rank 1
    return train(method(name, nonfinite="skip"), data=(x, y))


def zero_loss(name: str, folder: Path) -> dict[str, Any]:
    def loss(outputs: Tensor, targets: Tensor, **options: Any) -> Tensor:
        value = nn.functional.mse_loss(outputs, targets, **options)
        return value * 0 if dist.get_global_rank() == 1 else value

    return train(method(name), loss=loss)


def hand_written(
    name: str, folder: Path, *, inner: bool = False, module: Callable[[], nn.Module] = dense, **options: Any
) -> dict[str, Any]:
    """A loop without Composer, where each gradient is a bucket of its own; ``inner`` wraps for the model inside."""
    torch.manual_seed(3)
    model = DistributedDataParallel(module(), bucket_cap_mb=1e-5, **options)
    used, base = method(name), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = used.wrap(base, model=model.module if inner else model, total_steps=STEPS)
    sharp = []
    with recorded_passes() as synced:
        for batch in loader(samples()):
            optimizer.step(closure(used, model, optimizer, batch))
            sharp.append(optimizer.metrics["sam/applied"])
    return {"weights": weights(model), "sharp": sharp, "synced": synced}


def overhead(folder: Path) -> dict[str, Any]:
    """A budget where every process has a clock of its own: on one a second gradient takes twice as long."""
    torch.manual_seed(3)
    model = DistributedDataParallel(dense())
    used = METHODS["aesam"](target_overhead=0.2)
    optimizer = used.wrap(torch.optim.SGD(model.parameters(), lr=0.01), model=model)
    time, metrics = [0.0], []
    optimizer._context.passes.clock = lambda: time[0]
    for t, batch in enumerate(loader(samples(steps=60))):
        run, calls = closure(used, model, optimizer, batch), iter((1.0, 1.0 + dist.get_global_rank()))

        def timed(run: Callable[..., Tensor] = run, calls: Iterator[float] = calls) -> Tensor:
            time[0] += next(calls)
            return run()

        time[0] += 50.0 * (t == 20 + dist.get_global_rank())  # and each pauses when the other does not
        optimizer.step(timed)
        metrics.append(optimizer.metrics)
    return {"weights": weights(model), "metrics": metrics, "memory": optimizer.method_state_dict()}


def recalibrated(folder: Path) -> dict[str, Any]:
    """A run whose evaluations are recalibrated; its last statistics, and what each process has to average."""
    seen: list[dict[str, Tensor]] = []
    watch = On(Event.EVAL_BATCH_START, lambda state: seen.append(weights(state.model)))
    data = samples(torch.float64)
    options: dict[str, Any] = {"module": noisy, "dtype": torch.float64, "eval_interval": "3ba"}
    plain = train(method("momentumsam"), eval_dataloader=loader(data), **options)["weights"]
    run = trainer(method("momentumsam"), eval_dataloader=loader(data), callbacks=[watch], **options)
    recalibration = RecalibrateBatchNorm(batches=4, evaluations="all")
    run.state.algorithms.append(recalibration)
    recalibration.apply(Event.INIT, run.state, run.logger)
    run.fit()
    inner: Any = run.state.model.module
    hidden = [inner.module[0](x).detach() for x, _ in list(loader(data))[:4]]
    return {"weights": weights(run.state.model), "seen": seen, "hidden": torch.stack(hidden), "plain": plain}


SCENARIOS: dict[str, Callable[[Path], Any]] = {
    "overhead": overhead,
    "recalibrated": recalibrated,
    "narrow": partial(precise, "sam", False, fraction=0.5),
}
REPLICAS = [(name, "dense") for name in METHODS]
REPLICAS += [(name, model) for name in KINDS for model in MODELS if model != "dense"]
SCENARIOS |= {f"replicas-{name}-{model}": partial(replicas, name, model) for name, model in REPLICAS}
for name in METHODS:
    SCENARIOS[f"resume-{name}"] = partial(resume, name)
    SCENARIOS[f"own-{name}"] = partial(precise, name, False)
    SCENARIOS[f"nan-{name}"] = partial(bad_samples, name)
for name in dict.fromkeys((*ORACLES, *KINDS)):
    SCENARIOS[f"synchronized-{name}"] = partial(precise, name, True)
for name in ORACLES:
    SCENARIOS[f"microbatches-{name}"] = partial(precise, name, True, device_train_microbatch_size=2)
for name in KINDS:
    SCENARIOS[f"zero-{name}"] = partial(zero_loss, name)
for name in VIEWS:
    SCENARIOS[f"loop-{name}"] = partial(hand_written, name)
    SCENARIOS[f"loop-views-{name}"] = partial(hand_written, name, gradient_as_bucket_view=True)
for name in LOOPS:
    alone = partial(hand_written, name, inner=True)
    SCENARIOS[f"inner-{name}"] = alone
    SCENARIOS[f"inner-views-{name}"] = partial(alone, gradient_as_bucket_view=True)
    SCENARIOS[f"static-{name}"] = partial(hand_written, name, static_graph=True)
    SCENARIOS[f"static-views-{name}"] = partial(hand_written, name, static_graph=True, gradient_as_bucket_view=True)
    SCENARIOS[f"unused-{name}"] = partial(hand_written, name, module=Partial, find_unused_parameters=True)
