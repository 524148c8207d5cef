"""What a step costs, counted and not timed: passes, copies of the parameters, tensors kept between steps."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from sam_algos import AESAM, ASAM, SAM, AELookSAM, LookSAM, Method
from tests.cases import Closure, each_method, make_batches, make_model, steps, wrap

SIZE = 31 * 7  # of the one parameter below; nothing else in its model has as many elements


class CountOps(TorchDispatchMode):
    """Counts operations by name, and those that make a new tensor as large as the parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.made: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        given |= {a.untyped_storage().data_ptr() for a in (kwargs or {}).values() if isinstance(a, torch.Tensor)}
        for made in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(made, torch.Tensor) and made.numel() == SIZE:
                self.made[name] += made.untyped_storage().data_ptr() not in given
        return out


PASSES: dict[str, tuple[Method, list[int]]] = {
    "sam": (SAM(), [2, 2, 2, 2, 2, 2]),
    "sam, interval=3": (SAM(interval=3), [2, 1, 1, 2, 1, 1]),
    "asam": (ASAM(), [2, 2, 2, 2, 2, 2]),
    "looksam": (LookSAM(k=4), [2, 1, 1, 1, 2, 1]),
    "aesam, always": (AESAM(lambda_1=-9.0, lambda_2=-9.0), [2, 2, 2, 2, 2, 2]),
    "aesam, never": (AESAM(lambda_1=9.0, lambda_2=9.0), [1, 1, 1, 1, 1, 1]),
    "aelooksam, early only": (AELookSAM(lambda_1=90.0, lambda_2=-40.0), [2, 2, 1, 1, 1, 1]),
}


@pytest.mark.parametrize("name", PASSES)
def test_gradients_per_step(name: str) -> None:
    """Counted in the backward passes of the convolution that autograd really ran."""
    method, expected = PASSES[name]
    model = make_model("convolution")
    optimizer = wrap(method, model, total_steps=6)
    counted = []
    for batch in make_batches(6):
        with CountOps() as ops:
            optimizer.step(Closure(model, optimizer, batch))
        counted.append(ops.calls["convolution_backward"])
        assert optimizer.metrics["sam/applied"] == counted[-1] - 1
    assert counted == expected


@each_method
def test_a_step_takes_one_gradient_or_two(method: Method) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model)
    assert set(steps(model, optimizer, make_batches(12))) <= {1, 2}


def made_by_step(method: Method | None, steps_before: int) -> Counter[str]:
    """New tensors as large as the parameters that a step makes, by operation."""
    torch.manual_seed(0)
    model = nn.Linear(31, 7, bias=False)
    optimizer = wrap(method, model, "sgd")
    batch = (torch.randn(3, 31), torch.randn(3, 7))
    for _ in range(steps_before):
        optimizer.step(Closure(model, optimizer, batch))
    with CountOps() as ops:
        optimizer.step(Closure(model, optimizer, batch))
    return ops.made


# The plain step makes one tensor: its gradient. A second pass makes another. The rest is the method's own.
MADE: dict[str, tuple[Method, int, int]] = {
    "sam": (SAM(), 0, 2),
    "sam, flat": (SAM(interval=5), 1, 1),
    "aesam, sharp": (AESAM(lambda_1=-9.0, lambda_2=-9.0), 0, 2),
    "aesam, flat": (AESAM(lambda_1=9.0, lambda_2=9.0), 1, 1),
    "looksam, sharp: the weights displaced beside the plain gradient": (LookSAM(k=2), 0, 3),
    "looksam, flat": (LookSAM(k=2), 1, 1),
}


@pytest.mark.parametrize("name", MADE)
def test_copies_of_the_parameters_per_step(name: str) -> None:
    method, steps_before, expected = MADE[name]
    assert sum(made_by_step(None, 0).values()) == 1
    made = made_by_step(method, steps_before)
    assert sum(made.values()) == expected, made
    assert "clone" not in made


KEPT: dict[str, set[str]] = {"looksam": {"looksam_direction"}, "aelooksam": {"looksam_direction"}}


@each_method
def test_tensors_kept_between_steps_are_those_declared(method: Method) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model, "sgd")
    list(steps(model, optimizer, make_batches(6)))
    kept = {key for p in model.parameters() for key, v in optimizer.state[p].items() if v is not None}
    assert kept == set(method.parts().descent.buffers)
    memory = optimizer.method_state_dict()
    flat = [*memory["policy"].values(), *(v for k, v in memory.items() if k != "policy")]
    assert all(isinstance(value, (int, float, str, bool, list, tuple)) for value in flat)


@pytest.mark.parametrize(("method", "buffers"), [(SAM(), 0), (ASAM(), 0), (AESAM(), 0), (LookSAM(), 1)], ids=repr)
def test_tensors_kept_per_parameter(method: Method, buffers: int) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model, "sgd")
    list(steps(model, optimizer, make_batches(6)))
    for p in model.parameters():
        assert sum(v is not None for v in optimizer.state[p].values()) == buffers


def peak(function: Any) -> int:
    """The most bytes that were allocated at once beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    changes = [event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(changes))


PEAKS: dict[str, tuple[Method, float]] = {
    "sam": (SAM(), 1),
    "sam, p=inf": (SAM(p=float("inf")), 1),
    "sam, flat": (SAM(interval=9), 0),
    "asam": (ASAM(), 1),
    "asam, filter": (ASAM(scope="filter"), 1),
    "aesam, sharp": (AESAM(lambda_1=-9.0, lambda_2=-9.0), 1),
    "aesam, flat": (AESAM(lambda_1=9.0, lambda_2=9.0), 0),
    "looksam, sharp": (LookSAM(k=1), 2),
    "looksam, flat": (LookSAM(k=9), 0),
}


@pytest.mark.parametrize("name", PEAKS)
def test_memory_of_a_step_beyond_a_plain_one(name: str) -> None:
    """In copies of the parameters, as PyTorch's profiler counts allocations."""
    method, copies = PEAKS[name]
    peaks = []
    for used in (None, method):
        model = nn.Sequential(*(nn.Linear(300, 300, bias=False) for _ in range(3)))
        optimizer = wrap(used, model, "sgd")
        closure = Closure(model, optimizer, (torch.randn(2, 300), torch.randn(2, 300)))
        optimizer.step(closure)
        optimizer.zero_grad()
        peaks.append(peak(lambda: optimizer.step(closure)))  # noqa: B023
        if used is not None:
            assert optimizer.metrics["sam/applied"] == ("flat" not in name)
    size = sum(p.nbytes for p in model.parameters())
    assert copies - 0.05 <= (peaks[1] - peaks[0]) / size <= copies + 0.05


SYNCHRONISATIONS: dict[str, tuple[Method, int]] = {
    "sam": (SAM(), 1),
    "sam, flat": (SAM(interval=9), 1),
    "asam": (ASAM(), 1),
    "aesam, sharp": (AESAM(lambda_1=-9.0, lambda_2=-9.0), 1),
    "aesam, flat": (AESAM(lambda_1=9.0, lambda_2=9.0), 1),
}


@pytest.mark.parametrize("name", SYNCHRONISATIONS)
def test_scalars_that_a_step_brings_to_the_host(name: str) -> None:
    """The gradient's norm, for the log and for a policy that reads it; the scale stays where it is."""
    method, expected = SYNCHRONISATIONS[name]
    model = nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(9)))
    optimizer = wrap(method, model, "sgd")
    closure = Closure(model, optimizer, (torch.randn(2, 6), torch.randn(2, 6)))
    optimizer.step(closure)
    with CountOps() as ops:
        optimizer.step(closure)
    assert ops.calls["_local_scalar_dense"] == expected
