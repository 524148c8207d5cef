"""Two processes, each on its half of the batches, through every framework that is installed: run by test_ddp.py."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from sam_algos import METHODS
from tests.integrations.page import grouped, loader, plain_network, reference, run, sgd

METHOD = METHODS["looksam"](rho=0.1, k=2, synchronize=True)  # keeps a gradient, which must be that of all processes


def shard() -> DataLoader[Any]:
    """This process's half of each batch."""
    rank = int(os.environ["RANK"])
    x, y = loader().dataset.tensors  # pyright: ignore[reportAttributeAccessIssue]
    rows = torch.arange(len(x)).view(-1, 2, 2)[:, rank].flatten()
    return DataLoader(torch.utils.data.TensorDataset(x[rows], y[rows]), batch_size=2)


def pytorch(folder: Path) -> Any:
    model = plain_network()
    ddp = DistributedDataParallel(model)
    optimizer = METHOD.wrap(sgd(model), model=ddp)
    for [(x, y)] in grouped(shard()):

        def closure(x: Any = x, y: Any = y) -> Any:
            loss = nn.functional.cross_entropy(ddp(x), y)
            loss.backward()
            return loss.detach()

        optimizer.backward(closure)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


def accelerate(folder: Path) -> Any:
    """Its loader gives this process every other half."""
    model = plain_network()
    names = {"model": model, "base": sgd(model), "data": loader(2), "path": folder / "state"}
    run("accelerate", **names, options={"cpu": True}, AESAM=lambda **_: METHOD)
    return model


def lightning(folder: Path, k: int = 1) -> Any:
    options = {
        "accumulate_grad_batches": k,
        **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False),
        **{"accelerator": "cpu", "devices": 2, "strategy": "ddp", "max_epochs": 1, "gradient_clip_val": 1.0},
        **{"use_distributed_sampler": False, "default_root_dir": folder},
    }
    kept = []

    def make() -> Any:
        kept.append(plain_network())
        return kept[-1]

    heading = "Lightning, automatic optimization"
    run(heading, network=make, data=shard(), options=options, AESAM=lambda **_: METHOD)
    return kept[-1]


def lightning_accumulates(folder: Path) -> Any:
    return lightning(folder, 2)


def transformers(folder: Path) -> Any:
    """The Trainer, with this process on every other batch."""
    from tests.integrations import test_transformers as cases

    trainer = cases.in_order(
        cases.trainer(folder, METHOD, cases.language_model(0.0), gradient_accumulation_steps=1, ddp_backend="gloo")
    )
    trainer.train()
    return trainer.model


def language_model() -> Any:
    """The same in one process, on both batches."""
    from tests.integrations import test_transformers as cases

    model = cases.language_model(0.0)
    cases.expected(METHOD, model)
    return model


def one_process(k: int = 1) -> Any:
    """On whole batches: what the means over both processes are."""
    model = plain_network()
    reference(model, grouped(loader(), k), method=METHOD, clip=1.0)
    return model


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    runs = {
        "pytorch": pytorch,
        "accelerate": accelerate,
        "lightning": lightning,
        "lightning, accumulating": lightning_accumulates,
    }
    found = {"one process": one_process().state_dict(), "one process, accumulating": one_process(2).state_dict()}
    if importlib.util.find_spec("accelerate") and importlib.util.find_spec("transformers"):
        runs["transformers"] = transformers
        found["language model"] = language_model().state_dict()
    for name, train in runs.items():
        if name == "pytorch" or importlib.util.find_spec(name.partition(",")[0]):
            found[name] = train(folder).state_dict()
    torch.save(found, folder / f"rank{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
