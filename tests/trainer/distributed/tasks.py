"""Small models, data and Trainers that the scenarios share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from composer import Trainer
from composer.core import Algorithm, Callback
from composer.models import ComposerModel
from composer.optim import ConstantScheduler
from composer.utils import dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from sam_algos import METHODS, Method
from sam_algos.core.passes.selection import EVERYTHING, Selection

BATCH = 8  # over all ranks
STEPS = 6

# Options under which a few steps show every branch: sharp and flat steps, reused directions.
OPTIONS: dict[str, dict[str, Any]] = {
    "sam": {"rho": 0.1},
    "asam": {"rho": 0.5},
    "looksam": {"rho": 0.1, "k": 3, "alpha": 0.5},
    "looklayersam": {"rho": 0.1, "k": 3, "alpha": 0.5},
    "aesam": {"rho": 0.1, "delta": 0.5, "lambda_1": -0.1, "lambda_2": 0.1},
    "aelooksam": {"rho": 0.1, "alpha": 0.5, "delta": 0.5, "lambda_1": -0.1, "lambda_2": 0.1},
    "friendlysam": {"rho": 0.1, "lmbda": 0.5},
    "latesam": {"rho": 0.1, "start": 0.5},
    "momentumsam": {"rho": 0.1},
    "esam": {"rho": 0.1},
}

KINDS = ("sam", "aelooksam", "friendlysam", "momentumsam", "esam")
"""A method of each kind: what it remembers, and which passes it makes."""

# Options under which the first step is sharp, for the methods that wait.
SHARP_AT_ONCE: dict[str, dict[str, Any]] = {"latesam": {"start": 0.0}}


def method(name: str, **options: Any) -> Method:
    return METHODS[name](**{**OPTIONS.get(name, {}), **options})


def dense() -> nn.Module:
    """A network without randomness, whose 5 rows do not divide by two processes."""
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3))


def convolutional() -> nn.Module:
    """Every weight can be divided along its second dimension too."""
    convolution = nn.Unflatten(1, (2, 1, 2)), nn.Conv2d(2, 4, (1, 2)), nn.GroupNorm(1, 4)
    return nn.Sequential(*convolution, nn.Flatten(), nn.Tanh(), nn.Linear(4, 3))


def noisy() -> nn.Module:
    """BatchNorm and dropout: statistics and random draws that the second pass must not disturb."""
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


class Partial(nn.Module):
    """One part that no process uses, and one that only the first process does."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))
        self.never, self.sometimes = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x) + self.sometimes(x) if dist.get_global_rank() == 0 else self.used(x)


class UsesPart(Algorithm):
    """Tells Composer that a pass may leave parameters unused."""

    @property
    def find_unused_parameters(self) -> bool:
        return True

    def match(self, event: Any, state: Any) -> bool:
        return False

    def apply(self, event: Any, state: Any, logger: Any) -> None:
        raise NotImplementedError


class Task(ComposerModel):
    """A network with a loss, as Composer wants it."""

    def __init__(self, module: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module = module
        self._loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self.module(batch[0])

    def loss(self, outputs: Tensor, batch: Any, *args: Any, **kwargs: Any) -> Tensor:
        return self._loss(outputs, batch[1], *args, **kwargs)


def samples(dtype: torch.dtype = torch.float32, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH * steps, 4, generator=generator, dtype=torch.float64)
    # Later samples are larger, and alternate in size: gradient norms differ from step to step.
    scale = 1 + torch.arange(steps).repeat_interleave(BATCH)[:, None] % 3
    y = torch.randn(BATCH * steps, 3, generator=generator, dtype=torch.float64) * scale
    return x.to(dtype), y.to(dtype)


def loader(data: tuple[Tensor, Tensor]) -> DataLoader:
    """Batches of `BATCH` over all ranks; rank r of n gets samples r, r + n, ... of each."""
    dataset = TensorDataset(*data)
    sampler = dist.get_sampler(dataset, shuffle=False)
    return DataLoader(dataset, batch_size=BATCH // dist.get_world_size(), sampler=sampler)


def closure(used: Method, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> Callable[..., Tensor]:
    """What a hand-written loop gives to the step."""
    each = used.parts().reader("reads_losses") is not None

    def run(samples: Selection = EVERYTHING) -> Tensor:
        optimizer.zero_grad()
        x, y = samples(batch)
        losses = nn.functional.mse_loss(model(x), y, reduction="none").mean(1)
        loss = losses.mean()
        if torch.is_grad_enabled():
            loss.backward()
        return losses if each else loss

    return run


class Recorder(Callback):
    """Keeps the method's figures of every step."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []

    def batch_end(self, state: Any, logger: Any) -> None:
        self.metrics.append(dict(getattr(state.optimizers[0], "metrics", {})))


def trainer(
    algorithm: Method | None = None,
    *,
    module: Callable[[], nn.Module] = dense,
    loss: Callable[..., Tensor] = nn.functional.mse_loss,
    data: tuple[Tensor, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    steps: int = STEPS,
    **options: Any,
) -> Trainer:
    """A Trainer on the same weights and data whenever it is made."""
    torch.manual_seed(3)
    model = Task(module().to(dtype), loss)
    make = optimizer or (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01))
    settings: dict[str, Any] = {
        "max_duration": f"{steps}ba",
        "device": "cpu",
        "seed": 5,
        "schedulers": ConstantScheduler(),
        "progress_bar": False,
        "auto_log_hparams": False,
        "callbacks": [Recorder()],
    }
    return Trainer(
        model=model,
        optimizers=make(model.parameters()),
        algorithms=[*([algorithm] if algorithm else []), *([UsesPart()] if module is Partial else [])],
        train_dataloader=loader(data or samples(dtype)),
        **{**settings, **options},
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, whole even where they are sharded."""
    values = [*model.named_parameters(), *model.named_buffers()]
    return {name.removeprefix("module."): whole(value.detach()).clone() for name, value in values}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_weights(model: nn.Module) -> list[Tensor]:
    """This rank's part of each parameter."""
    values = (p.detach() for p in model.parameters())
    return [(v.to_local() if isinstance(v, DTensor) else v).clone() for v in values]


def outcome(run: Trainer) -> dict[str, Any]:
    """What a run ended with on this rank."""
    metrics = next(c.metrics for c in run.state.callbacks if isinstance(c, Recorder))
    found = {"weights": weights(run.state.model), "metrics": metrics}
    state = run.state.optimizers[0].state
    found["state"] = {
        f"{i}.{key}": whole(value).clone() if isinstance(value, Tensor) else value
        for i, param in enumerate(run.state.model.parameters())
        for key, value in state.get(param, {}).items()
    }
    method_state = getattr(run.state.optimizers[0], "method_state_dict", dict)
    found["memory"] = method_state()
    run.close()
    return found


def train(algorithm: Method | None = None, **options: Any) -> dict[str, Any]:
    run = trainer(algorithm, **options)
    run.fit()
    return outcome(run)
