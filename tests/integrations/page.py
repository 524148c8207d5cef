"""The snippets of the pages in docs, and what they are compared with: the same training by `step(closure)`."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, TensorDataset

from sam_algos import AESAM, Method

DOCS = Path(__file__).parents[2] / "docs"
METHOD = AESAM(rho=0.05)
CLOSURE = """
def closure():
    optimizer.zero_grad()
    loss = loss_function(model(x), y)
    loss.backward()
    return loss
"""  # what snippets without one mean by "the closure from above"

Batches = Sequence[tuple[Tensor, Tensor]]


def blocks(page: str = "frameworks") -> dict[str, list[str]]:
    """A page's Python, by the heading that it stands under."""
    sections = re.split(r"^##+ (.*)$", (DOCS / f"{page}.md").read_text(), flags=re.MULTILINE)[1:]
    return {
        name: re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        for name, text in zip(sections[::2], sections[1::2], strict=True)
    }


def run(heading: str, number: int = 0, page: str = "frameworks", **names: Any) -> dict[str, Any]:
    """Execute a snippet as it stands on the page; returns the names that it leaves."""
    code = blocks(page)[heading][number]
    given = {"torch": torch, "AESAM": AESAM, "loss_function": cross_entropy, "clip_grad_norm_": clip_grad_norm_}
    names = {**given, "device": "cpu", **names}
    if "(closure" in code and "def closure" not in code:
        exec(CLOSURE, names)
    torch.manual_seed(2)
    exec(compile(code, f"{page}.md: {heading}", "exec", dont_inherit=True), names)
    return names


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))


def plain_network() -> Any:
    """The same without masks, and without statistics of the batch."""
    model: Any = network()
    model[1], model[3] = nn.Identity(), nn.Identity()
    return model


def loader(batch_size: int = 4) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(32, 6, generator=generator)
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=batch_size, generator=generator)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def reference(
    model: nn.Module,
    steps: Sequence[Batches],
    *,
    method: Method = METHOD,
    total_steps: int = 1000,
    clip: float | None = None,
    rate: Any = None,
) -> Any:
    """Train by `step(closure)`, a step for each entry of ``steps``, which is its microbatches."""
    optimizer = method.wrap(sgd(model), model=model, total_steps=total_steps)
    if clip is not None:
        optimizer.register_step_pre_hook(lambda *_: clip_grad_norm_(model.parameters(), clip) and None)
    scheduler = rate(optimizer) if rate else None
    for microbatches in steps:

        def closure(microbatches: Batches = microbatches) -> Tensor:
            optimizer.zero_grad()
            losses = []
            for x, y in microbatches:
                loss = cross_entropy(model(x), y) / len(microbatches)
                loss.backward()
                losses.append(loss.detach())
            return torch.stack(losses).sum()

        optimizer.step(closure)
        if scheduler is not None:
            scheduler.step()
    return optimizer


def grouped(batches: Any, size: int = 1) -> list[Batches]:
    return list(zip(*[iter(batches)] * size, strict=False))


def trained(steps: Sequence[Batches], model: nn.Module | None = None, **options: Any) -> dict[str, Tensor]:
    """The state of a network after training by the reference from a fixed seed."""
    model = model or network()
    torch.manual_seed(2)
    reference(model, steps, **options)
    return copy.deepcopy(model.state_dict())
