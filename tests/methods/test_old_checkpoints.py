"""A checkpoint of an earlier version resumes as if nothing had changed: ``checkpoints.json`` was written by 8096b63.

Each entry holds the model, the optimizer and the method after four of eight steps, and the weights and figures at the
end.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_algos import AESAM, ESAM, SAM, AELookSAM, Cosine, FriendlySAM, Method, VaSSO

CHECKPOINTS: dict[str, Any] = json.loads(Path(__file__).with_name("checkpoints.json").read_text())
METHODS: dict[str, Method] = {
    "aelooksam": AELookSAM(lambda_1=0.0, lambda_2=0.0),
    "aesam": AESAM(target_fraction=0.5),
    "esam": ESAM(gamma=0.5),
    "friendlysam": FriendlySAM(),
    "sam": SAM(rho=Cosine(0.5, 0.0), interval=2),
    "vasso": VaSSO(),
}
HAS_FMA = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")  # as the machine that wrote the file


class Plane(nn.Module):
    """Three weights and elementwise operations, whose last bits do not depend on a library."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.25], dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor([0.125], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).sum(1) + self.bias


def tensors(value: Any) -> Any:
    """Lists of numbers as the tensors that they were."""
    if isinstance(value, dict):
        return {int(key) if key.isdigit() else key: tensors(item) for key, item in value.items()}
    is_tensor = isinstance(value, list) and all(isinstance(item, float) for item in value)
    return torch.tensor(value, dtype=torch.float64) if is_tensor else value


def take_steps(optimizer: Any, model: nn.Module, batches: Tensor) -> None:
    for batch in batches:

        def closure(samples: Any = lambda batch: batch, batch: Tensor = batch) -> Tensor:
            chosen = samples(batch)
            return (model(chosen[:, :2]) - chosen[:, 2]).square()

        optimizer.step(closure)


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_of_an_earlier_version_resumes(name: str) -> None:
    saved, model = CHECKPOINTS[name], Plane()
    base = torch.optim.SGD(model.parameters(), lr=0.0625, momentum=0.5)
    optimizer: Any = METHODS[name].wrap(base, model=model, total_steps=8)
    model.load_state_dict(tensors(saved["model"]))
    optimizer.load_state_dict({**saved["optimizer"], "state": tensors(saved["optimizer"]["state"])})
    optimizer.load_method_state_dict(saved["method"])
    assert optimizer.method_state_dict() == saved["method"]
    batches = torch.randint(-8, 9, (8, 4, 3), generator=torch.Generator().manual_seed(0)).double() / 4
    take_steps(optimizer, model, batches[4:])
    end = {key: value.tolist() for key, value in model.state_dict().items()}
    exactly = (lambda expected: expected) if HAS_FMA else (lambda expected: pytest.approx(expected, rel=1e-12))
    assert all(end[key] == exactly(expected) for key, expected in saved["end"].items())
    assert optimizer.metrics == exactly(saved["metrics"])
