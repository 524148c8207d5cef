"""Replicated parameters: DistributedDataParallel on two processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sam_algos import METHODS
from tests.distributed.tasks import (
    STEPS,
    Partial,
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

NEEDS_PROCESS_GROUP = True
BAD_STEP = 2  # whose samples contain a NaN on the last rank

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
    """In float64, without momentum: what an oracle can follow."""
    used = method(name, synchronize=synchronize, ascent_fraction=fraction)
    with recorded_passes() as synced:
        plain_sgd = partial(torch.optim.SGD, lr=0.1)
        result = train(used, dtype=torch.float64, optimizer=plain_sgd, **options)
    return {**result, "synced": synced}


def bad_samples(name: str, folder: Path) -> dict[str, Any]:
    x, y = samples()
    x[8 * BAD_STEP + 1] = torch.nan  # odd samples go to rank 1
    return train(method(name, nonfinite="skip"), data=(x, y))


def zero_loss(name: str, folder: Path) -> dict[str, Any]:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        value = nn.functional.mse_loss(outputs, targets)
        return value * 0 if dist.get_global_rank() == 1 else value

    return train(method(name), loss=loss)


def hand_written(name: str, bucket_view: bool, folder: Path) -> dict[str, Any]:
    """A loop without Composer, where each gradient is a bucket of its own."""
    torch.manual_seed(3)
    model = DistributedDataParallel(dense(), gradient_as_bucket_view=bucket_view, bucket_cap_mb=1e-5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = method(name).wrap(optimizer, model=model, total_steps=STEPS)
    sharp = []
    with recorded_passes() as synced:
        for x, y in loader(samples()):

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)
            sharp.append(optimizer.metrics["sam/applied"])
    return {"weights": weights(model), "sharp": sharp, "synced": synced}


SCENARIOS: dict[str, Callable[[Path], Any]] = {
    "narrow": partial(precise, "sam", False, fraction=0.5),
}
for name in METHODS:
    SCENARIOS |= {f"replicas-{name}-{model}": partial(replicas, name, model) for model in MODELS}
    SCENARIOS[f"resume-{name}"] = partial(resume, name)
    SCENARIOS[f"own-{name}"] = partial(precise, name, False)
    SCENARIOS[f"synchronized-{name}"] = partial(precise, name, True)
    SCENARIOS[f"microbatches-{name}"] = partial(precise, name, True, device_train_microbatch_size=2)
    SCENARIOS[f"nan-{name}"] = partial(bad_samples, name)
    SCENARIOS[f"zero-{name}"] = partial(zero_loss, name)
    SCENARIOS[f"loop-{name}"] = partial(hand_written, name, False)
    SCENARIOS[f"loop-views-{name}"] = partial(hand_written, name, True)
