"""What a step costs, counted and not timed: passes, copies of the parameters, synchronisations."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sam_algos import (
    AESAM,
    ASAM,
    ESAM,
    GSAM,
    SAM,
    SAMON,
    WSAM,
    AELookSAM,
    FisherSAM,
    FriendlySAM,
    GradientNormPenalty,
    LateSAM,
    LookLayerSAM,
    LookSAM,
    Method,
    MomentumSAM,
    RandomSAM,
    StableSAM,
    VaSSO,
)
from sam_algos.core.tensors.displacement import SMALL
from tests.cases import Closure, make_batches, make_model, steps, wrap

SHAPE = (131, 67)
SIZE = 131 * 67  # of the one parameter below; nothing else in its model has as many elements
assert SIZE > SMALL  # smaller ones are displaced anew, which takes fewer calls


class CountOps(TorchDispatchMode):
    """Counts operations by name, and those that make a new tensor as large as the parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.made: Counter[str] = Counter()
        self.samples: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        if name in ("convolution", "convolution_backward"):
            self.samples[name] += len(args[0])
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        given |= {a.untyped_storage().data_ptr() for a in (kwargs or {}).values() if isinstance(a, torch.Tensor)}
        for made in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(made, torch.Tensor) and made.numel() == SIZE:
                self.made[name] += made.untyped_storage().data_ptr() not in given
        return out


GRADIENTS: dict[str, tuple[Method, list[float]]] = {
    "sam": (SAM(), [2, 2, 2, 2, 2, 2]),
    "sam, interval=3": (SAM(interval=3), [2, 1, 1, 2, 1, 1]),
    "sam, steps=2": (SAM(steps=2), [3, 3, 3, 3, 3, 3]),
    "sam, steps=4, interval=2": (SAM(steps=4, interval=2), [5, 1, 5, 1, 5, 1]),
    "sam, second order": (SAM(second_order=True, interval=2), [3, 1, 3, 1, 3, 1]),
    "sam, ascent_fraction=.25": (SAM(ascent_fraction=0.25), [1.25] * 6),
    "sam, ascent_fraction=.3": (SAM(ascent_fraction=0.3, interval=2), [1.375, 1, 1.375, 1, 1.375, 1]),
    "asam": (ASAM(), [2, 2, 2, 2, 2, 2]),
    "samon": (SAMON(), [2, 2, 2, 2, 2, 2]),
    "friendlysam": (FriendlySAM(), [2, 2, 2, 2, 2, 2]),
    "momentumsam": (MomentumSAM(rho=0.1), [1, 1, 1, 1, 1, 1]),
    "randomsam": (RandomSAM(), [1, 1, 1, 1, 1, 1]),
    "gsam": (GSAM(), [2, 2, 2, 2, 2, 2]),
    "gradientnormpenalty": (GradientNormPenalty(), [2, 2, 2, 2, 2, 2]),
    "wsam": (WSAM(), [2, 2, 2, 2, 2, 2]),
    "stablesam": (StableSAM(), [2, 2, 2, 2, 2, 2]),
    "vasso": (VaSSO(), [2, 2, 2, 2, 2, 2]),
    "fishersam": (FisherSAM(), [2, 2, 2, 2, 2, 2]),
    "latesam": (LateSAM(start=0.5), [1, 1, 1, 2, 2, 2]),
    "latesam, from the start": (LateSAM(start=0.0), [2, 2, 2, 2, 2, 2]),
    "latesam, never": (LateSAM(start=1.0), [1, 1, 1, 1, 1, 1]),
    "esam": (ESAM(beta=1.0), [1.5] * 6),
    "esam, gamma=.25": (ESAM(beta=1.0, gamma=0.25), [1.25] * 6),
    "esam, gamma=.3": (ESAM(beta=1.0, gamma=0.3), [1.375] * 6),
    "esam, gamma=1": (ESAM(beta=1.0, gamma=1.0), [2, 2, 2, 2, 2, 2]),
    "looksam": (LookSAM(k=4), [2, 1, 1, 1, 2, 1]),
    "looklayersam": (LookLayerSAM(k=4), [2, 1, 1, 1, 2, 1]),
    "aesam, always": (AESAM(lambda_1=-9.0, lambda_2=-9.0), [2, 2, 2, 2, 2, 2]),
    "aesam, never": (AESAM(lambda_1=9.0, lambda_2=9.0), [1, 1, 1, 1, 1, 1]),
    "aelooksam, early only": (AELookSAM(lambda_1=90.0, lambda_2=-40.0), [2, 2, 1, 1, 1, 1]),
}


@pytest.mark.usefixtures("without_looks")
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_per_step(name: str) -> None:
    """Counted in the samples that went backward through the convolution, of 8 in each batch."""
    method, expected = GRADIENTS[name]
    model = make_model("convolution")
    optimizer = wrap(method, model, total_steps=6)
    forwards = 1 if name.startswith("esam") and "gamma=1" not in name else 0
    for count in expected:
        with CountOps() as ops:
            optimizer.step(Closure(model, optimizer, (torch.randn(8, 6), torch.randn(8, 3))))
        assert ops.samples["convolution_backward"] / 8 == count
        assert ops.samples["convolution"] / 8 == count + forwards
        assert optimizer.metrics["sam/gradients"] == count
        assert optimizer.metrics.get("sam/forwards", 0) == forwards


def test_a_random_mask_that_keeps_nothing_costs_a_plain_step() -> None:
    model = make_model("mlp")
    optimizer = wrap(ESAM(beta=1e-9), model)
    assert list(steps(model, optimizer, make_batches(3))) == [1, 1, 1]
    assert optimizer.metrics["sam/gradients"] == 1
    assert optimizer.metrics["sam/applied"] == optimizer.metrics["sam/forwards"] == 0


def made_by_step(method: Method | None, steps_before: int) -> Counter[str]:
    """New tensors as large as the parameters that a step makes, by operation."""
    torch.manual_seed(0)
    model = nn.Linear(*SHAPE, bias=False)
    optimizer = wrap(method, model, "sgd")
    batch = (torch.randn(3, SHAPE[0]), torch.randn(3, SHAPE[1]))
    for _ in range(steps_before):
        optimizer.step(Closure(model, optimizer, batch))
    with CountOps() as ops:
        optimizer.step(Closure(model, optimizer, batch))
    return ops.made


# The plain step makes one tensor: its gradient. A second pass makes another. The rest is the method's own.
MADE: dict[str, tuple[Method, int, int]] = {
    "sam": (SAM(), 0, 2),
    "sam, flat": (SAM(interval=5), 1, 1),
    "momentumsam: the weights displaced": (MomentumSAM(), 1, 2),
    "esam, with a forward between": (ESAM(beta=1.0), 0, 2),
    "aesam, sharp": (AESAM(lambda_1=-9.0, lambda_2=-9.0), 0, 2),
    "aesam, flat": (AESAM(lambda_1=9.0, lambda_2=9.0), 1, 1),
    "gsam: as looksam": (GSAM(), 0, 3),
    "gradientnormpenalty: as looksam": (GradientNormPenalty(), 0, 3),
    "stablesam: the sharp gradient rescaled besides": (StableSAM(), 0, 4),
    "looksam, sharp: the weights displaced beside the plain gradient": (LookSAM(k=2), 0, 3),
    "looksam, flat": (LookSAM(k=2), 1, 1),
}


@pytest.mark.usefixtures("without_looks")
@pytest.mark.parametrize("name", MADE)
def test_copies_of_the_parameters_per_step(name: str) -> None:
    method, steps_before, expected = MADE[name]
    assert sum(made_by_step(None, 0).values()) == 1
    made = made_by_step(method, steps_before)
    assert sum(made.values()) == expected, made
    assert "clone" not in made


SYNCHRONISATIONS: dict[str, tuple[Method, int]] = {
    "sam": (SAM(), 1),
    "sam, flat": (SAM(interval=9), 1),
    "asam": (ASAM(), 1),
    "aesam, sharp": (AESAM(lambda_1=-9.0, lambda_2=-9.0), 1),
    "aesam, flat": (AESAM(lambda_1=9.0, lambda_2=9.0), 1),
}


@pytest.mark.parametrize("name", SYNCHRONISATIONS)
def test_scalars_that_a_step_brings_to_the_host(name: str) -> None:
    """The gradient's norm, for the log and for a policy that reads it. On a CPU, where it is at hand, the scale too."""
    method, expected = SYNCHRONISATIONS[name]
    model = nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(9)))
    optimizer = wrap(method, model, "sgd")
    closure = Closure(model, optimizer, (torch.randn(2, 6), torch.randn(2, 6)))
    optimizer.step(closure)
    with CountOps() as ops:
        optimizer.step(closure)
    assert ops.calls["_local_scalar_dense"] == expected + optimizer.metrics["sam/applied"]
