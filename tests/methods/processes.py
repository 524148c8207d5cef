"""Two processes whose closures are sound, faulty, or sound on one of them only: run by test_sight_on_processes.py."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from sam_algos import SAM, LookSAM, Method, MomentumSAM, RandomSAM

PATIENCE = timedelta(seconds=60)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def replicated() -> nn.Module:
    return DistributedDataParallel(network())


class _TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)])

    def forward(self, x: Tensor, head: int) -> Tensor:
        return self.heads[head](x)


def two_heads() -> nn.Module:
    return DistributedDataParallel(_TwoHeads(), find_unused_parameters=True)


def sharded() -> nn.Module:
    model = network()
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    return model


def with_hook(state: Any, hook: Callable[..., Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = DistributedDataParallel(network())
        model.register_comm_hook(state(), hook)
        return model

    return make


def power_sgd() -> PowerSGDState:
    return PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=0.1)


def loss_of(model: nn.Module) -> Tensor:
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(dist.get_rank()))
    return model(x).square().mean()


def sound(model: nn.Module, optimizer: Any) -> Callable[[], Tensor]:
    return lambda: (optimizer.zero_grad(), loss := loss_of(model), loss.backward())[1]


def nothing_to_learn_on_one(model: nn.Module, optimizer: Any) -> Callable[[], Tensor]:
    """Whose loss then is the same at the displaced weights."""
    weight = float(dist.get_rank() == 0)
    return lambda: (optimizer.zero_grad(), loss := weight * loss_of(model), loss.backward())[1]


def another_code_on_one(model: nn.Module, optimizer: Any) -> Callable[[], Tensor]:
    one = lambda: (optimizer.zero_grad(), loss := loss_of(model), loss.backward())[1]  # noqa: E731
    other = lambda: (optimizer.zero_grad(), loss := loss_of(model), loss.backward(), None)[1]  # noqa: E731
    return other if dist.get_rank() and len(optimizer.metrics) else one


def another_head_on_one(model: nn.Module, optimizer: Any) -> Callable[[], Tensor]:
    """The optimizer holds the first head, which one process does not reach in the first two steps."""
    head = int(dist.get_rank() == 1 and optimizer.method_state_dict()["step"] < 2)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(dist.get_rank()))
    return lambda: (optimizer.zero_grad(), loss := model(x, head).square().mean(), loss.backward())[1]


def copies(model: nn.Module, optimizer: Any) -> Callable[[], Tensor]:
    """A gradient and a loss of weights from before."""
    optimizer.zero_grad()
    loss = loss_of(model)
    loss.backward()
    kept = [p.grad.clone() for p in model.parameters()]

    def closure() -> Tensor:
        for p, gradient in zip(model.parameters(), kept, strict=True):
            p.grad = gradient.clone()
        return loss.detach()

    return closure


Case = tuple[Callable[[], nn.Module], Method, Callable[..., Any]]
CASES: dict[str, Case] = {
    **{
        f"{name}, {closure.__name__}, {type(method).__name__}": (make, method, closure)
        for name, make in (("replicated", replicated), ("sharded", sharded))
        for closure in (sound, nothing_to_learn_on_one, another_code_on_one, copies)
        for method in (SAM(), RandomSAM(), *((MomentumSAM(rho=0.1),) if closure is copies else ()))
    },
    **{
        f"two heads, {type(method).__name__}": (two_heads, method, another_head_on_one)
        for method in (SAM(), MomentumSAM(rho=0.1), RandomSAM())
    },
    "memory, synchronized": (with_hook(power_sgd, powerSGD_hook), SAM(synchronize=True), sound),
    "memory, looksam": (with_hook(power_sgd, powerSGD_hook), LookSAM(), sound),
    "memory, own": (with_hook(power_sgd, powerSGD_hook), SAM(), sound),
    "no memory, synchronized": (
        with_hook(lambda: dist.group.WORLD, default_hooks.bf16_compress_hook),
        SAM(synchronize=True),
        sound,
    ),
}


def train(case: Case) -> tuple[str, list[Tensor]]:
    """What was said, and the weights in the end."""
    make, method, closure = case
    model = make()
    trained = (model.module.heads[0] if make is two_heads else model).parameters()
    optimizer = method.wrap(torch.optim.SGD(trained, lr=0.1, momentum=0.9), model=model)
    said = ""
    try:
        for _ in range(4):
            optimizer.step(closure(model, optimizer))
    except (RuntimeError, ValueError) as error:
        said = str(error)
    return said, [getattr(p, "full_tensor", lambda p=p: p)().detach().clone() for p in model.parameters()]


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=PATIENCE)
    found = {name: train(case) for name, case in CASES.items()}
    torch.save(found, folder / f"rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
