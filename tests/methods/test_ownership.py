"""Nothing wrong in silence: what a part remembers, or was handed, is written into by nobody."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_algos import (
    ASAM,
    SAM,
    Ascent,
    Descent,
    LookSAM,
    Method,
    Perturbation,
    Reuse,
    SharpGradient,
    SharpnessAware,
    Update,
)
from sam_algos.core.tensors import lists as tensors
from sam_algos.core.tensors.displacement import SMALL
from tests.cases import (
    Closure,
    distance,
    make_batches,
    make_model,
    refused,
    same,
    wrap,
)


class Remembers(Perturbation):
    """Climbs along what it remembers, or along the gradient, and remembers the other or the same object."""

    buffers = ("mine",)
    reads_gradient = True

    def ascend(self, step: Any) -> Ascent:
        kept = step.recall("mine")
        direction = kept or step.gradient
        return Ascent(direction, tensors.reciprocal(direction.norm()), remember={"mine": kept or step.gradient})


class RemembersTheGradient(Perturbation):
    """Hands the loop's own gradient over to be climbed along, and remembers it as well."""

    buffers = ("mine",)

    def ascend(self, step: Any) -> Ascent:
        g = step.gradient
        return Ascent(g, tensors.reciprocal(g.norm()), remember={"mine": g})


@dataclass(frozen=True, repr=False)
class RemembersTheUpdate(Descent):
    """Remembers the very gradient that the base optimizer gets."""

    buffers = ("mine",)

    def sharp(self, step: Any, g_s: Any) -> Update:
        return Update(g_s, {"mine": g_s})


def in_place(optimizer: Any, model: nn.Module) -> None:
    """Clip and zero in place, as code around the step may."""
    optimizer.register_step_pre_hook(lambda *_: (nn.utils.clip_grad_norm_(model.parameters(), 1e-6), None)[1])
    optimizer.register_step_post_hook(lambda *_: optimizer.zero_grad(set_to_none=False))


def gradients(model: nn.Module, batch: Any) -> list[Tensor]:
    return list(torch.autograd.grad(Closure(model, torch.optim.SGD(model.parameters()), batch).losses().mean(),
                                    list(model.parameters())))  # fmt: skip


@pytest.mark.parametrize("descent", [SharpGradient(), Reuse()], ids=str)
@pytest.mark.parametrize("part", [Remembers, RemembersTheGradient])
def test_what_a_perturbation_remembers_is_unharmed_by_climbing_clipping_and_zeroing(
    part: type[Perturbation], descent: Descent
) -> None:
    """Whether the displaced weights take the direction's own memory, as they do where that is large, or not."""
    model = nn.Sequential(nn.Linear(6, SMALL), nn.Linear(SMALL, 3), nn.LayerNorm(3))
    optimizer = wrap(SharpnessAware(perturbation=part(rho=0.5), descent=descent), model)
    in_place(optimizer, model)
    for batch in make_batches(3):
        kept = [optimizer.state[p]["mine"].clone() for p in model.parameters() if "mine" in optimizer.state[p]]
        expected = kept if kept and part is Remembers else gradients(model, batch)
        optimizer.step(Closure(model, optimizer, batch))
        found = [optimizer.state[p]["mine"] for p in model.parameters()]
        assert same(found, expected)


def test_what_a_descent_remembers_is_what_the_base_optimizer_was_given_before_clipping() -> None:
    model = make_model("mlp")
    optimizer = wrap(SharpnessAware(descent=RemembersTheUpdate()), model)
    in_place(optimizer, model)
    given: list[Tensor] = []
    optimizer._context.passes.finish = lambda: given.extend(p.grad.clone() for p in model.parameters())
    for batch in make_batches(3):
        given.clear()
        optimizer.step(Closure(model, optimizer, batch))
        assert same([optimizer.state[p]["mine"] for p in model.parameters()], given)


@dataclass(frozen=True, repr=False)
class ReadsLate(Descent):
    """Reads the plain gradient without having said so."""

    def sharp(self, step: Any, g_s: Any) -> Update:
        return Update(step.gradient)


def test_reading_a_gradient_that_was_overwritten_is_an_error() -> None:
    model = make_model("mlp")
    for perturbation in (SAM().parts().perturbation, SAM(p=3.0).parts().perturbation, ASAM().parts().perturbation):
        optimizer = wrap(SharpnessAware(perturbation=perturbation, descent=ReadsLate()), model)
        closure = Closure(model, optimizer, make_batches(1)[0])
        refused(optimizer, closure, RuntimeError, "declares reads_gradient = True")


MAKES: dict[str, Callable[[], Tensor]] = {"expanded": lambda: torch.ones(()).expand(3, 4), "a view": lambda: X[:3]}
X = torch.ones(5, 4)


@pytest.mark.parametrize("made", MAKES)
@pytest.mark.parametrize("method", [SAM(), ASAM(), LookSAM(k=1), LookSAM(k=3)], ids=str)
def test_gradients_set_by_hand_may_share_their_elements(method: Method, made: str) -> None:
    ends = []
    for make in (MAKES[made], lambda: torch.ones(3, 4)):
        torch.manual_seed(0)
        model = nn.Linear(4, 3, bias=False)
        optimizer = wrap(method, model)

        def closure(model: nn.Linear = model, make: Any = make) -> float:
            model.weight.grad = make()
            return float(model.weight.detach().sum())

        for _ in range(4):
            optimizer.step(closure)
        ends.append(model)
    assert distance(*ends) == 0.0
    assert torch.equal(X, torch.ones(5, 4)), "what is somebody else's is not written into"
