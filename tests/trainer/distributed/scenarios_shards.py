"""Every pass of hand-written FSDP2 loops, recorded whole, for several ways to divide the parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from sam_algos import METHODS, SAM
from sam_algos.core.passes.selection import EVERYTHING, Selection
from sam_algos.core.tensors import lists as tensors
from sam_algos.core.tensors import shards
from tests.trainer.distributed.tasks import closure, convolutional, loader, method, samples, whole

NEEDS_PROCESS_GROUP = True
STEPS = 4

CASES: dict[str, Callable[[], Any]] = {
    **{name: partial(method, name) for name in METHODS},
    **{f"sam-p{p}": partial(SAM, rho=0.1, p=p) for p in (1.0, 3.0, float("inf"))},
    "asam-filter": partial(method, "asam", scope="filter"),
    "asam-layer": partial(method, "asam", scope="layer"),
    "asam-bias": partial(method, "asam", normalize_bias=True),
}
LAYOUTS = {"rows": None, "columns": lambda p: Shard(min(1, p.ndim - 1))}
WITH_ORACLES = ("sam", "asam", "looksam", "looklayersam", "aesam", "aelooksam")
ORACLES = [(case, layout) for case in CASES if case.split("-")[0] in WITH_ORACLES for layout in LAYOUTS]
FOLLOWED = {1: ORACLES, 2: [*ORACLES, *((case, "rows") for case in CASES if (case, "rows") not in ORACLES)]}
"""What is recorded on one process and on two; on two it is compared between them, too."""


def follow(case: str, layout: str, folder: Path) -> dict[str, Any]:
    torch.manual_seed(3)
    model = convolutional().double()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model, mesh=mesh, shard_placement_fn=LAYOUTS[layout])
    used, momentum = CASES[case](), 0.9 * (case == "momentumsam")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=momentum)  # weights differ by the gradient it gets
    optimizer = used.wrap(optimizer, model=model, total_steps=STEPS)
    steps = []
    for batch in loader(samples(torch.float64, STEPS)):
        passes: list[dict[str, list[Tensor]]] = []

        def recorded(samples: Selection = EVERYTHING, run: Any = None, passes: list[Any] = passes) -> Tensor:
            before = values(model.parameters())
            loss = run(samples)
            if torch.is_grad_enabled():
                passes.append({"w": before, "g": values(p.grad for p in model.parameters())})
            return loss

        optimizer.step(partial(recorded, run=closure(used, model, optimizer, batch)))
        steps.append({"passes": passes, "w": values(model.parameters()), "metrics": optimizer.metrics})
    return {"steps": steps, "names": [name for name, _ in model.named_parameters()]}


def checkpointed(name: str, flat: bool, folder: Path) -> dict[str, Any]:
    """A run that goes on from what torch.distributed.checkpoint made of its first half, and one that did not stop."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    batches, found = list(loader(samples(torch.float64, STEPS))), {}
    for run in ("first", "resumed", "whole"):
        torch.manual_seed(3)
        model = fully_shard(convolutional().double())
        used, base = method(name), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer: Any = used.wrap(base, model=model, total_steps=STEPS)
        if run == "resumed":
            model.load_state_dict(found["model"])
            set_optimizer_state_dict(model, optimizer, found["optimizer"], options=options)
            optimizer.load_method_state_dict(found["method"])
        todo = {"first": batches[:2], "resumed": batches[2:], "whole": batches}[run]
        for batch in todo:
            optimizer.step(closure(used, model, optimizer, batch))
        if run == "first":
            saved = get_optimizer_state_dict(model, optimizer, options=options)
            found = {"model": model.state_dict(), "optimizer": saved, "method": optimizer.method_state_dict()}
            found = copy.deepcopy(found)
        else:
            state = [value for p in model.parameters() for value in optimizer.state[p].values()]
            found[run] = values([*model.parameters(), *state])
    return {"whole": found["whole"], "resumed": found["resumed"]}


def values(parts: Any) -> list[Tensor]:
    return [whole(part.detach()).clone() for part in parts]


def sums(folder: Path) -> dict[str, Any]:
    """Sums over parameters that lie differently on meshes of two dimensions, and one that lies on none."""
    processes = dist.get_world_size()
    meshes = [init_device_mesh("cpu", shape) for shape in ((processes, 1), (1, processes))]
    copies = Replicate()
    layouts = [[copies, Shard(0)], [Shard(0), copies], [Shard(1), Shard(0)], [copies, copies]]
    places = [(mesh, layout) for mesh in meshes for layout in layouts]
    values = torch.randn(9, 2, 5, 4, dtype=torch.float64)
    lone, pairs = values[-1].unbind(), [pair.unbind() for pair in values[:-1]]
    like = [distribute_tensor(a, *place) for (a, _), place in zip(pairs, places, strict=True)] + [lone[0]]
    other = [distribute_tensor(b, *place) for (_, b), place in zip(pairs, places, strict=True)] + [lone[1]]
    a, b = [shards.local(t) for t in like], [shards.local(t) for t in other]
    filters = [tensors.filter_norms(x, p).expand_as(x) for x, p in zip(a, like, strict=True)]
    return {
        "whole": values,
        "norms": tensors.norms(a, like),
        "norm": tensors.norm(a, like),
        "dot": tensors.dot(a, b, like),
        "largest": tensors.largest(a, like),
        "filters": [whole(shards.wrap_like(x, p)) for x, p in zip(filters, like, strict=True)],
    }


SCENARIOS: dict[str, Callable[[Path], Any]] = {
    "sums": sums,
    **{
        f"checkpointed-{name}-{flat}": partial(checkpointed, name, flat)
        for name in ("looksam", "friendlysam", "momentumsam")
        for flat in (False, True)
    },
    **{f"{case}-{layout}": partial(follow, case, layout) for case, layout in FOLLOWED[dist.get_world_size()]},
}
