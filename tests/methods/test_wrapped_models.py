"""Models that PyTorch has wrapped: compiled, and with parametrized weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from sam_algos import SAM, AELookSAM, LookSAM, Method

RHO, RATE = 0.3, 0.1


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()


def train(model: nn.Module, call: Callable[[Tensor], Tensor], method: Method, steps: int = 4) -> dict[str, Tensor]:
    optimizer = method.wrap(torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9), model=model, total_steps=steps)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(5, 6, generator=generator, dtype=torch.float64)

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss = call(x).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("method", [SAM(rho=RHO), LookSAM(rho=RHO, k=2), AELookSAM(rho=RHO)], ids=str)
def test_a_compiled_model_trains_as_it_does_uncompiled(method: Method) -> None:
    """With its BatchNorm statistics; the backend traces and guards like any other, but needs no compiler."""
    torch._dynamo.reset()
    eager, model = network(), network()
    expected = train(eager, eager, method)
    compiled = torch.compile(model, backend="aot_eager")
    trained = train(model, compiled, method)
    assert trained["1.num_batches_tracked"] == 4  # one pass a step, as the flag is one of the compiler's guards
    for name, value in trained.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)


def test_a_parametrized_weight_climbs_in_its_own_parameters() -> None:
    model = network()
    parametrizations.weight_norm(model[0])
    params = dict(model.named_parameters())
    assert "0.parametrizations.weight.original0" in params
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = {name: p.detach().clone() for name, p in params.items()}

    def gradient(at: dict[str, Tensor]) -> dict[str, Tensor]:
        leaves = {name: value.clone().requires_grad_() for name, value in at.items()}
        loss = torch.func.functional_call(model, leaves, (x,)).square().sum()
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    g = gradient(before)
    norm = torch.cat([value.flatten() for value in g.values()]).norm()
    g_s = gradient({name: value + RHO * g[name] / norm for name, value in before.items()})
    after = train(model, model, SAM(rho=RHO), steps=1)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value - RATE * g_s[name], rtol=1e-9, atol=1e-12)
