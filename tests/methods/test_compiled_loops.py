"""`torch.compile` around a function that takes the step: the graph breaks there, and compiled models stay compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import mse_loss

from sam_algos import SAM, LookSAM, Method
from tests.cases import make_batches, make_model, same, snapshot, wrap


def step(optimizer: Any, model: Any, x: torch.Tensor, y: torch.Tensor) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = mse_loss(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)


def backward(optimizer: Any, model: Any, x: torch.Tensor, y: torch.Tensor) -> None:
    def closure() -> torch.Tensor:
        loss = mse_loss(model(x), y)
        loss.backward()
        return loss

    optimizer.zero_grad()
    optimizer.backward(closure)
    optimizer.step()


def accumulate(optimizer: Any, model: Any, x: torch.Tensor, y: torch.Tensor) -> None:
    def closure() -> torch.Tensor:
        loss = mse_loss(model(x), y)
        loss.backward()
        return loss

    optimizer.zero_grad()
    optimizer.accumulate(closure)
    optimizer.step(closure)


# Dynamo of torch 2.14 looks at the `.grad` of a loss that comes back through a graph break.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("method", [SAM(rho=0.5), LookSAM(k=2)], ids=str)
@pytest.mark.parametrize("train", [step, backward, accumulate])
def test_a_compiled_function_that_takes_the_step_trains_as_it_does_alone(train: Any, method: Method) -> None:
    ends, compiled = [], []

    def backend(module: Any, inputs: Any) -> Any:
        compiled.append(len(inputs))
        return module.forward

    for around in (lambda f: f, lambda f: torch.compile(f, backend=backend)):
        torch._dynamo.reset()
        model: Any = make_model("mlp")
        optimizer = wrap(method, model)
        function = around(train)
        for batch in make_batches(3):
            function(optimizer, around(model), *batch)
        ends.append(snapshot(model, optimizer))
    assert same(*ends)
    assert compiled  # the model was, inside the closure
