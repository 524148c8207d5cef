"""Base optimizers that step by a gradient of their own: refused where the method's would be lost."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sam_algos import GSAM, SAM, WSAM, GradientNormPenalty, LookSAM, Method, MomentumSAM, StableSAM
from tests.cases import make_batches, make_model, model_of, same, snapshot

BATCHES = make_batches(3)
torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)  # from then on SGD.step calls hooks, also for classes of it
COMPUTES = [LookSAM(k=2), GSAM(), WSAM(), StableSAM(), GradientNormPenalty(), SAM(second_order=True), SAM(m=2)]


def losses(model: nn.Module, batch: Any, *samples: Any) -> Tensor:
    x, y = samples[0](batch) if samples else batch
    return (model(x) - y).square().mean(1)


class Replaces(torch.optim.SGD):
    """Steps by a gradient that it has from elsewhere."""

    def step(self, closure: Any = None) -> None:
        if closure is not None:
            closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        super().step()


class Centralizes(torch.optim.SGD):
    """Puts a gradient in place of the one that it is given, and computes it from that."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.share = 0.9

    def step(self, closure: Any = None) -> None:
        if closure is not None:
            closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = p.grad - self.share * p.grad.mean()
        super().step()


class Decays(torch.optim.SGD):
    """Adds weight decay to the gradient in place, as many do."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.add_(p, alpha=0.01)
        super().step()


@pytest.mark.parametrize("way", ["step", "backward"])
@pytest.mark.parametrize("method", COMPUTES, ids=str)
def test_an_optimizer_that_replaces_a_computed_gradient_is_refused(method: Method, way: str) -> None:
    model = make_model("mlp")
    optimizer: Any = method.wrap(Replaces(model.parameters(), lr=0.1), model=model, total_steps=9)
    with pytest.raises(RuntimeError, match="Replaces replaced the gradient by one of its own"):
        getattr(optimizer, way)(lambda *samples: losses(model, BATCHES[0], *samples))
        optimizer.step()


@pytest.mark.parametrize("method", [SAM(), MomentumSAM()], ids=str)
def test_methods_whose_last_pass_leaves_the_gradient_are_not(method: Method) -> None:
    model = make_model("mlp")
    optimizer: Any = method.wrap(Replaces(model.parameters(), lr=0.1, momentum=0.9), model=model)
    for batch in BATCHES:
        optimizer.step(lambda batch=batch: losses(model, batch))


@pytest.mark.parametrize(
    ("kind", "method"),
    [*((Decays, method) for method in COMPUTES), (Centralizes, COMPUTES[0]), (Centralizes, COMPUTES[-1])],
)
def test_an_optimizer_that_works_on_the_gradient_it_is_given_is_not(kind: Any, method: Method) -> None:
    model = make_model("mlp")
    base = kind(model.parameters(), lr=0.1, momentum=0.9)
    optimizer: Any = method.wrap(base, model=model, total_steps=9)
    for batch in BATCHES:
        optimizer.step(lambda *samples, batch=batch: losses(model, batch, *samples))
    assert len(base.state) == len(list(model.parameters()))  # a trial leaves nothing behind
    assert not base._optimizer_step_pre_hooks and not base._optimizer_step_post_hooks  # it has been seen


class Private(torch.optim.Optimizer):
    """Like Opacus': takes the sum of what all backward passes since `zero_grad` left, and calls no hooks."""

    def __init__(self, params: Any) -> None:
        self.original_optimizer = torch.optim.SGD(params, lr=0.1)
        for p in self.params():
            p.register_hook(lambda grad, p=p: p.grad_samples.append(grad.clone()))
        self.zero_grad()

    def params(self) -> list[Any]:
        return [p for group in self.original_optimizer.param_groups for p in group["params"]]

    param_groups = property(lambda self: self.original_optimizer.param_groups)
    state = property(lambda self: self.original_optimizer.state)
    defaults = property(lambda self: self.original_optimizer.defaults)

    def state_dict(self) -> Any:
        return self.original_optimizer.state_dict()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.params():
            p.grad_samples = []
        self.original_optimizer.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> None:
        for p in self.params():
            p.grad = torch.stack(p.grad_samples).sum(0)
        self.original_optimizer.step()


Private.__module__ = "opacus.optimizers.optimizer"


@pytest.mark.parametrize("method", COMPUTES, ids=str)
def test_opacus_is_refused_before_a_step_for_methods_that_compute_a_gradient(method: Method) -> None:
    model = make_model("mlp")
    with pytest.raises(ValueError, match="computes a gradient, and Opacus' Private steps by those of single samples"):
        method.wrap(Private(model.parameters()), model=model, total_steps=9)


@pytest.mark.parametrize("zeroes", ["in the closure", "before it", "not at all"])
def test_sam_around_opacus_steps_by_the_last_pass_and_says_that_the_ascent_is_not_private(zeroes: str) -> None:
    model, other = make_model("mlp"), make_model("mlp")
    with pytest.warns(UserWarning, match=r"the ascent to .*PNorm.* is not private"):
        optimizer: Any = SAM(rho=0.5).wrap(Private(model.parameters()), model=model)
    expected: Any = SAM(rho=0.5).wrap(torch.optim.SGD(other.parameters(), lr=0.1), model=other)
    for batch in BATCHES:

        def closure(batch: Any = batch) -> Tensor:
            if zeroes == "in the closure":
                optimizer.zero_grad()
            loss = mse_loss(model(batch[0]), batch[1])
            loss.backward()
            return loss

        if zeroes == "before it":
            optimizer.zero_grad()
        optimizer.step(closure if zeroes != "not at all" else lambda batch=batch: losses(model, batch))
        expected.step(lambda batch=batch: losses(other, batch))
        if zeroes == "not at all":
            optimizer.zero_grad()
    torch.testing.assert_close(dict(model.state_dict()), dict(other.state_dict()), rtol=1e-5, atol=1e-6)


def test_what_opacus_cannot_do_is_refused() -> None:
    model = make_model("mlp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer: Any = SAM().wrap(Private(model.parameters()), model=model)
    before = snapshot(model)
    with pytest.raises(TypeError, match="Private calls no hooks"):
        optimizer.backward(lambda: losses(model, BATCHES[0]))
    with pytest.raises(ValueError, match="Private keeps the gradients of samples"):
        optimizer.accumulate(lambda: losses(model, BATCHES[0]))
    assert same(snapshot(model), before)


def test_a_copy_is_watched_as_well() -> None:
    model = make_model("mlp")
    optimizer: Any = copy.deepcopy(LookSAM().wrap(Replaces(model.parameters(), lr=0.1), model=model))
    with pytest.raises(RuntimeError, match="replaced the gradient"):
        optimizer.step(lambda: losses(model_of(optimizer), BATCHES[0]))


def test_passes_that_run_within_the_base_optimizers_step_are_no_replacement() -> None:
    """As in Lightning, which hands the step a closure."""
    model = make_model("mlp")
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer: Any = LookSAM(k=2).wrap(base, model=model)
    for batch in BATCHES:
        base.step(lambda batch=batch: optimizer.backward(lambda: losses(model, batch)))
    assert optimizer.method_state_dict()["step"] == len(BATCHES)


@pytest.mark.parametrize(("kind", "refused"), [(Replaces, True), (Centralizes, False)])
def test_the_gradient_may_be_computed_within_the_base_optimizers_step(kind: Any, refused: bool) -> None:
    """As in Lightning."""
    model = make_model("mlp")
    base = kind(model.parameters(), lr=0.1)
    optimizer: Any = LookSAM(k=2).wrap(base, model=model)
    with pytest.raises(RuntimeError, match="Replaces replaced the gradient") if refused else nullcontext():
        for batch in BATCHES:
            base.step(lambda batch=batch: optimizer.backward(lambda: losses(model, batch)))
