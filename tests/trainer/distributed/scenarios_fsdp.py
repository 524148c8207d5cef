"""Sharded parameters under Composer: FSDP2 on one process or two."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from composer.core import Callback
from composer.utils import dist
from composer.utils.parallelism import FSDP2Config, FSDPConfig
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from sam_algos import METHODS
from tests.trainer.distributed.tasks import (
    BATCH,
    KINDS,
    SHARP_AT_ONCE,
    dense,
    loader,
    local_weights,
    method,
    noisy,
    outcome,
    samples,
    train,
    trainer,
    weights,
)

NEEDS_PROCESS_GROUP = True
STATES = ("full", "sharded")
NEVER_SHARP = {"lambda_1": 100.0, "lambda_2": 100.0}
REMEMBERING = (*KINDS, "aesam", "looksam", "looklayersam", "vasso", "gsam")
"""Also every other that remembers something or keeps a gradient."""
CROSSED = ("aelooksam", "friendlysam", "momentumsam")
SAVED = 4  # the batch after which a run is saved
BAD_STEP = 2
FAILURES = {
    1: [("backward", name) for name in KINDS],
    2: [("backward", name) for name in METHODS] + [(where, name) for where in ("forward", "loss") for name in KINDS],
}
"""Where a step fails and of which method: each method once, where most is under way."""
BAD_SHARDS = {1: KINDS, 2: METHODS}


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


def radius(kind: str, folder: Path) -> dict[str, Any]:
    """A checkpoint of plain training, for an optimizer one of whose groups has a radius of its own."""

    def optimizer(params: Iterable[Tensor], **first: float) -> torch.optim.Optimizer:
        [one, *others] = params
        return torch.optim.SGD([{"params": [one], **first}, {"params": others}], lr=0.1, momentum=0.9)

    train(optimizer=optimizer, steps=SAVED, **saving(folder, kind))
    run = trainer(method("sam"), optimizer=partial(optimizer, rho=0.0), **loading(folder, kind), **sharded(kind))
    began = [group.get("rho") for group in run.state.optimizers[0].param_groups]
    run.fit()
    return {"began": began, "ended": [group.get("rho") for group in run.state.optimizers[0].param_groups]}


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


class Notes:
    """What a model computed; no list, which a step would put back as it puts back all that a pass changes."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []


class Fragile(nn.Module):
    """Fails in one of its forwards, if asked to."""

    def __init__(self, fails_in: int) -> None:
        super().__init__()
        self.inner, self.fails_in, self.notes = dense(), fails_in, Notes()

    def forward(self, x: Tensor) -> Tensor:
        self.notes.outputs.append(self.inner(x))
        if len(self.notes.outputs) == self.fails_in:
            raise ArithmeticError("injected")
        return self.notes.outputs[-1]


def failure(name: str, where: str, folder: Path) -> dict[str, Any]:
    """An exception in the first pass at displaced weights, or in the one for the gradient there, on all processes."""
    number = 2 + (name == "esam" and where != "forward") + (name == "randomsam")  # whose second one only looks, at w
    fragile = Fragile(number if where == "forward" else 0)
    passes, before = fragile.notes.outputs, {}

    def loss(outputs: Tensor, targets: Tensor, **options: Any) -> Tensor:
        value = nn.functional.mse_loss(outputs, targets, **options)
        if len(passes) == number and where == "loss":
            raise ArithmeticError("injected")
        if len(passes) == number and where == "backward":
            value.register_hook(fail)
        return value

    class Watch(Callback):
        def batch_start(self, state: Any, logger: Any) -> None:
            before["shards"], before["whole"] = local_weights(state.model), weights(state.model)

    run = trainer(
        method(name, **SHARP_AT_ONCE.get(name, {})), module=lambda: fragile, loss=loss, callbacks=[Watch()], **sharded()
    )
    try:
        run.fit()
    except ArithmeticError:
        after = [p for group in run.state.optimizers[0].param_groups for p in group["params"]]
        clean = dense()
        clean.load_state_dict({name.removeprefix("inner."): w for name, w in before["whole"].items()})
        x, _ = run.state.batch
        return {
            "before": before["shards"],
            "after": [p.to_local().detach().clone() for p in after],
            "outputs": [output.detach() for output in (clean(x), passes[number - 1], run.state.model([x]))],
        }
    raise AssertionError("the exception was lost")


def fail(gradient: Tensor) -> None:
    raise ArithmeticError("injected")


def choice(folder: Path) -> dict[str, Any]:
    """An exception after a forward pass at displaced weights, which no backward pass follows."""
    run, x = trainer(method("esam"), **sharded()), samples()[0][:BATCH]
    before, clean = local_weights(run.state.model), run.state.model([x]).detach()
    with mock.patch("sam_algos.core.objective.view.largest", side_effect=ArithmeticError):
        try:
            run.fit()
        except ArithmeticError:
            return {
                "before": before,
                "after": local_weights(run.state.model),
                "clean": clean,
                "again": run.state.model([x]).detach(),
            }
    raise AssertionError("the exception was lost")


def evaluated(name: str, folder: Path) -> list[dict[str, Any]]:
    """With and without an evaluation between the steps, which leaves FSDP2 with gathered weights."""
    evaluation = {"eval_dataloader": loader(samples(steps=1)), "eval_interval": "1ba"}
    return [train(method(name), **options, **sharded()) for options in (evaluation, {})]


def swap(kind: str, folder: Path) -> dict[str, Any]:
    """From a method to another that remembers something else."""
    first = train(method("friendlysam"), steps=SAVED, **saving(folder, kind))
    began = outcome(trainer(method("looksam"), **loading(folder, kind), **sharded(kind)))
    return {"first": first, "began": began, "ended": train(method("looksam"), **loading(folder, kind), **sharded(kind))}


def bad_shard(name: str, folder: Path) -> dict[str, Any]:
    """A NaN in the last row of a gradient: on two processes only the second holds it."""
    x, y = samples()
    y[8 * BAD_STEP, 2] = torch.nan
    module = lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))  # noqa: E731
    return train(method(name, nonfinite="skip"), module=module, data=(x, y), **sharded())


def microbatches(name: str, folder: Path) -> list[dict[str, Any]]:
    return [train(method(name), steps=3, device_train_microbatch_size=size, **sharded()) for size in (2, 4)]


def fsdp1(folder: Path) -> dict[str, Any]:
    try:
        trainer(method("sam"), parallelism_config={"fsdp": FSDPConfig()})
    except ValueError as error:
        return {"error": str(error)}
    raise AssertionError("FSDP1 was not refused")


SCENARIOS: dict[str, Callable[[Path], Any]] = {"plain": plain, "fsdp1": fsdp1, "lacking": lacking, "choice": choice}
for kind in STATES:
    SCENARIOS[f"radius-{kind}"] = partial(radius, kind)
    SCENARIOS[f"swap-{kind}"] = partial(swap, kind)
    for name in KINDS:
        SCENARIOS[f"resume-{kind}-{name}"] = partial(resume, partial(method, name), kind, module=noisy)
    for name in CROSSED:
        SCENARIOS[f"cross-{kind}-{name}"] = partial(cross, partial(method, name), kind)
    never_sharp = partial(method, "aelooksam", **NEVER_SHARP)
    SCENARIOS[f"resume-{kind}-flat"] = partial(resume, never_sharp, kind, module=dense)
    SCENARIOS[f"cross-{kind}-flat"] = partial(cross, never_sharp, kind)
    SCENARIOS[f"resume-{kind}-stateless"] = partial(
        resume, partial(method, "looksam"), kind, optimizer=partial(torch.optim.SGD, lr=0.1)
    )
    SCENARIOS[f"resume-{kind}-adamw"] = partial(
        resume, partial(method, "aelooksam"), kind, optimizer=partial(torch.optim.AdamW, lr=0.1)
    )
if dist.get_world_size() > 1:
    for name in REMEMBERING:
        SCENARIOS[f"resume-sharded-{name}"] = partial(resume, partial(method, name), "sharded", module=noisy)
for where, name in FAILURES[dist.get_world_size()]:
    SCENARIOS[f"failure-{where}-{name}"] = partial(failure, name, where)
for name in BAD_SHARDS[dist.get_world_size()]:
    SCENARIOS[f"nan-{name}"] = partial(bad_shard, name)
for name in KINDS:
    SCENARIOS[f"microbatches-{name}"] = partial(microbatches, name)
for name in ("sam", "momentumsam"):
    SCENARIOS[f"evaluated-{name}"] = partial(evaluated, name)
