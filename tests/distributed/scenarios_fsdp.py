"""Sharded parameters under Composer: FSDP2 on one process or two."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer.utils.parallelism import FSDP2Config, FSDPConfig
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from sam_algos import METHODS
from tests.distributed.tasks import dense, local_weights, method, noisy, outcome, samples, train, trainer

NEEDS_PROCESS_GROUP = True
KINDS = ("full", "sharded")
NEVER_SHARP = {"lambda_1": 100.0, "lambda_2": 100.0}
SAVED = 4  # the batch after which a run is saved
BAD_STEP = 2


def sharded(kind: str = "sharded") -> dict[str, Any]:
    return {"parallelism_config": {"fsdp": FSDP2Config(state_dict_type=kind)}}


def saving(folder: Path, kind: str) -> dict[str, Any]:
    return {"save_folder": str(folder), "save_interval": f"{SAVED}ba", **sharded(kind)}


def loading(folder: Path, kind: str, batch: int = SAVED) -> dict[str, Any]:
    name = f"ep0-ba{batch}" if kind == "sharded" else f"ep0-ba{batch}-rank0.pt"
    return {"load_path": str(folder / name)}


def resume(make: Callable[[], Any], kind: str, folder: Path, **options: Any) -> dict[str, Any]:
    """One run that was saved on its way, and another that goes on from there."""
    whole = train(make(), **options, **saving(folder, kind))
    return {"whole": whole, "resumed": train(make(), **options, **loading(folder, kind), **sharded(kind))}


def cross(make: Callable[[], Any], kind: str, folder: Path) -> dict[str, Any]:
    """Train plainly, go on with a method, and plainly again; what each began and ended with."""
    plain, there, back = folder / "plain", folder / "there", folder / "back"
    found = {"plain": train(steps=SAVED, **saving(plain, kind))}
    found["there-began"] = outcome(trainer(make(), **loading(plain, kind), **sharded(kind)))
    found["there"] = train(make(), **loading(plain, kind), **saving(there, kind))
    found["back-began"] = outcome(trainer(**loading(there, kind, 6), **sharded(kind)))
    found["back"] = train(steps=8, **loading(there, kind, 6), **saving(back, kind))
    return found


def lacking(folder: Path) -> dict[str, Any]:
    """A checkpoint without momentum, for an optimizer that has it."""
    train(optimizer=partial(torch.optim.SGD, lr=0.1), **saving(folder, "sharded"))
    try:
        trainer(method("looksam"), **loading(folder, "sharded"), **sharded())
    except CheckpointException as error:
        return {"error": str(error)}
    raise AssertionError("a missing momentum was passed over")


def plain(folder: Path) -> dict[str, Any]:
    return train(steps=8, **sharded())


class Fragile(nn.Module):
    """Fails in its second forward, if asked to."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.inner, self.fails, self.outputs = dense(), fails, []

    def forward(self, x: Tensor) -> Tensor:
        self.outputs.append(self.inner(x))
        if self.fails and len(self.outputs) == 2:
            raise ArithmeticError("no second pass")
        return self.outputs[-1]


def failure(name: str, where: str, folder: Path) -> dict[str, Any]:
    """An exception in the second pass of the first step, on all processes."""
    fragile = Fragile(where == "forward")

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        value = nn.functional.mse_loss(outputs, targets)
        if len(fragile.outputs) == 2 and where == "loss":
            raise ArithmeticError("no second pass")
        if len(fragile.outputs) == 2 and where == "backward":
            value.register_hook(fail)
        return value

    run = trainer(method(name), module=lambda: fragile, loss=loss, **sharded())
    before = local_weights(run.state.model)
    try:
        run.fit()
    except ArithmeticError:
        run.state.model(run.state.batch)
        outputs = [output.detach() for output in fragile.outputs]
        after = [p for group in run.state.optimizers[0].param_groups for p in group["params"]]
        return {"before": before, "after": [p.to_local().detach().clone() for p in after], "outputs": outputs}
    raise AssertionError("the exception was lost")


def fail(gradient: Tensor) -> None:
    raise ArithmeticError("no second pass")


def bad_shard(name: str, folder: Path) -> dict[str, Any]:
    """A NaN in the last row of a gradient: on two processes only the second holds it."""
    x, y = samples()
    y[8 * BAD_STEP, 2] = torch.nan
    return train(method(name, nonfinite="skip"), module=lambda: nn.Linear(4, 3), data=(x, y), **sharded())


def microbatches(name: str, folder: Path) -> list[dict[str, Any]]:
    return [train(method(name), device_train_microbatch_size=size, **sharded()) for size in (1, 4)]


def fsdp1(folder: Path) -> dict[str, Any]:
    try:
        trainer(method("sam"), parallelism_config={"fsdp": FSDPConfig()})
    except ValueError as error:
        return {"error": str(error)}
    raise AssertionError("FSDP1 was not refused")


SCENARIOS: dict[str, Callable[[Path], Any]] = {"plain": plain, "fsdp1": fsdp1, "lacking": lacking}
for kind in KINDS:
    for name in METHODS:
        SCENARIOS[f"resume-{kind}-{name}"] = partial(resume, partial(method, name), kind, module=noisy)
        SCENARIOS[f"cross-{kind}-{name}"] = partial(cross, partial(method, name), kind)
    for name in ("aesam", "aelooksam"):
        never_sharp = partial(method, name, **NEVER_SHARP)
        SCENARIOS[f"resume-{kind}-flat-{name}"] = partial(resume, never_sharp, kind, module=dense)
        SCENARIOS[f"cross-{kind}-flat-{name}"] = partial(cross, never_sharp, kind)
    SCENARIOS[f"resume-{kind}-stateless"] = partial(
        resume, partial(method, "looksam"), kind, optimizer=partial(torch.optim.SGD, lr=0.1)
    )
    SCENARIOS[f"resume-{kind}-adamw"] = partial(
        resume, partial(method, "aelooksam"), kind, optimizer=partial(torch.optim.AdamW, lr=0.1)
    )
for name in METHODS:
    for where in ("forward", "loss", "backward"):
        SCENARIOS[f"failure-{where}-{name}"] = partial(failure, name, where)
    SCENARIOS[f"nan-{name}"] = partial(bad_shard, name)
    SCENARIOS[f"microbatches-{name}"] = partial(microbatches, name)
