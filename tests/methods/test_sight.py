"""A displaced pass that did not see the displaced weights is refused before the step; what only looks so is not."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from sam_algos import ESAM, METHODS, SAM, Linear, LookSAM, Method, MomentumSAM, RandomSAM
from sam_algos.core.objective.sight import Look, Sight
from tests.cases import (
    Batch,
    Closure,
    distance,
    each_kind,
    make_batches,
    make_model,
    reads_losses,
    refused,
    same,
    snapshot,
    steps,
    watch,
    wrap,
)
from tests.methods.test_cost import CountOps

# A displaced pass is judged by the first one; by one of its own; once more; group by group. And where it may not act.
LOOKS = [SAM(rho=0.3), RandomSAM(rho=0.3), SAM(steps=2), SAM(m=4), LookSAM(rho=0.3, k=2)]
each_look = pytest.mark.parametrize("method", LOOKS, ids=str)
REFUSAL = "The closure (does not see the perturbed weights|went back through a graph)"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def begun(method: Method, model: nn.Module) -> Any:
    """The method's optimizer after a step, which gives it a momentum to climb against."""
    optimizer = wrap(method, model, "momentum")
    list(steps(model, optimizer, make_batches(2)[:1]))
    return optimizer


def loss_of(out: Tensor, y: Tensor) -> Tensor:
    return (out - y).square().mean()


def of_samples(closure: Callable[[], Any]) -> Callable[..., Any]:
    """A closure that ignores which samples it shall run on, but says that it knows."""

    def called(samples: Any = None) -> Any:
        if samples is not None:
            samples(torch.zeros(7))
        return closure()

    return called


@each_kind
def test_a_loss_from_outside_the_closure_is_refused(method: Method) -> None:
    model = make_model("mlp")
    optimizer = begun(method, model)
    if reads_losses(optimizer):
        pytest.skip("its closure returns losses, and the backward pass is the step's")
    for batch in make_batches(40):  # until the next sharp step
        before = snapshot(model, optimizer)
        try:
            optimizer.step(with_zeroing(optimizer, a_loss(model, *batch)))
        except RuntimeError as error:
            assert str(error).startswith("The closure")
            assert same(snapshot(model, optimizer), before)
            return
        assert not optimizer.metrics["sam/applied"]
    pytest.fail("no step was refused")


def a_loss(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    loss = loss_of(model(x), y)
    return lambda: (loss.backward(retain_graph=True), loss)[1]


def a_loss_without_its_graph(model: nn.Sequential, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    loss = loss_of(model(x), y)
    return lambda: (loss.backward(), loss)[1]


def an_output(model: nn.Sequential, x: Tensor, y: Tensor) -> Callable[[], Any]:
    out = model(x)

    def closure() -> float:
        loss = loss_of(out, y)
        loss.backward(retain_graph=True)
        return loss.item()

    return closure


def an_output_of_a_linear_model(model: nn.Sequential, x: Tensor, y: Tensor) -> Callable[[], Any]:
    """Whose graph has saved no weight."""
    del model[1:]
    out = model(x)
    return lambda: (loss := loss_of(out[:, :3], y), loss.backward(retain_graph=True))[0].detach()


def a_hidden_layer(model: nn.Sequential, x: Tensor, y: Tensor) -> Callable[[], Any]:
    """The first, whose weights its graph has not saved: neither SAM nor SGD."""
    hidden = model[0](x)
    return lambda: (loss := loss_of(model[1:](hidden), y), loss.backward(retain_graph=True))[0]


def a_hidden_layer_and_a_forward_pass(model: nn.Sequential, x: Tensor, y: Tensor) -> Callable[[], Any]:
    hidden = model[1](model[0](x))
    return lambda: (loss := loss_of(model[2](hidden), y).sqrt(), loss.backward(retain_graph=True))[0].item()


def detached_parameters(model: nn.Sequential, x: Tensor, y: Tensor) -> Callable[[], Any]:
    captured = {name: p.detach() for name, p in model.named_parameters()}

    def loss(params: dict[str, Tensor]) -> Tensor:
        return loss_of(torch.func.functional_call(model, params, (x,)), y)

    def closure() -> Tensor:
        gradients, value = torch.func.grad_and_value(loss)(captured)
        for name, p in model.named_parameters():
            p.grad = gradients[name]
        return value

    return closure


def cached_weights(model: nn.Sequential, x: Tensor, y: Tensor) -> Callable[[], Any]:
    """A cache of the program's own: layers run, and not on their parameters."""
    weights = [w.detach().clone().requires_grad_() for w in model.parameters()]
    names = [name for name, _ in model.named_parameters()]

    def closure() -> float:
        loss = loss_of(torch.func.functional_call(model, dict(zip(names, weights, strict=True)), (x,)), y)
        for p, gradient in zip(model.parameters(), torch.autograd.grad(loss, weights), strict=True):
            p.grad = gradient
        return float(loss.detach())

    return closure


FAULTS = [
    a_loss,
    a_loss_without_its_graph,
    an_output,
    an_output_of_a_linear_model,
    a_hidden_layer,
    a_hidden_layer_and_a_forward_pass,
    detached_parameters,
    cached_weights,
]


def with_zeroing(optimizer: Any, inner: Callable[[], Any]) -> Callable[..., Any]:
    return of_samples(lambda: (optimizer.zero_grad(), inner())[1])


@each_look
@pytest.mark.parametrize("fault", FAULTS)
def test_what_was_computed_before_the_closure_is_refused(fault: Callable[..., Any], method: Method) -> None:
    """By a step that has seen a good closure before, as methods that climb by momentum begin with a plain one."""
    model = network()
    if fault is an_output_of_a_linear_model:
        del model[1:]
        model[0] = nn.Linear(6, 3)
    optimizer = begun(method, model)
    list(steps(model, optimizer, make_batches(3)[1:]))
    inner = fault(model, *make_batches(4)[3])
    before = snapshot(model, optimizer)
    refusals = []
    for _ in range(2):  # LookSAM's second step is plain
        try:
            optimizer.step(with_zeroing(optimizer, inner))
        except RuntimeError as error:
            refusals.append(str(error))
            break
        assert not optimizer.metrics["sam/applied"]
        before = snapshot(model, optimizer)
        inner = fault(model, *make_batches(4)[3])
    assert refusals
    assert refusals[0].startswith("The closure")
    assert "inside the closure" in refusals[0]
    assert same(snapshot(model, optimizer), before)


@pytest.mark.parametrize("fault", [a_loss, a_hidden_layer, detached_parameters])
def test_backward_refuses_too(fault: Callable[..., Any]) -> None:
    model = network()
    optimizer = wrap(SAM(), model)
    inner = fault(model, *make_batches(1)[0])
    before = snapshot(model, optimizer)
    with pytest.raises(RuntimeError, match=REFUSAL):
        optimizer.backward(with_zeroing(optimizer, inner))
    assert same(snapshot(model, optimizer), before)


def test_the_error_names_the_weights() -> None:
    model = network()
    optimizer = wrap(SAM(), model)
    closure = with_zeroing(optimizer, a_hidden_layer(model, *make_batches(1)[0]))
    refused(optimizer, closure, RuntimeError, r"perturbed weights of 0\.weight and 1 more: .*not before the step")


def test_a_vector_of_losses_from_outside_is_refused() -> None:
    model = make_model("mlp")
    optimizer = wrap(ESAM(), model)
    x, y = make_batches(1)[0]
    losses = (model(x) - y).square().mean(1)
    refused(optimizer, lambda samples: samples(losses), RuntimeError, REFUSAL)


def a_linear_loss(model: nn.Module, x: Tensor) -> Any:
    loss = model(x).sum()
    loss.backward()
    return loss


def a_linear_loss_that_is_not_returned(model: nn.Module, x: Tensor) -> Any:
    model(x).sum().backward()
    return 1.0


def a_linear_loss_without_modules(model: nn.Module, x: Tensor) -> Any:
    sum((p.sum() for p in model.parameters()), torch.zeros(())).backward()
    return 1.0


def a_gradient_of_zero(model: nn.Module, x: Tensor) -> Any:
    loss = 3 + (0 * model(x)).sum()
    loss.backward()
    return loss


def a_constant_loss(model: nn.Module, x: Tensor) -> Any:
    out = model(x)
    loss = (out - out.detach()).sum()
    loss.backward()
    return loss


def a_gradient_by_hand(model: nn.Module, x: Tensor) -> Any:
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    return 1.0


def no_value(model: nn.Module, x: Tensor) -> Any:
    model(x).square().sum().backward()
    return 0.0


def steps_of_the_weights(model: nn.Module, x: Tensor) -> Any:
    """As quantised training: a small displacement changes nothing, and is no fault."""
    weight = model[0].weight
    loss = (x @ (weight.sign().detach() + (weight - weight.detach())).T).square().mean()
    loss.backward()
    return loss


SOUND = [
    a_linear_loss,
    a_linear_loss_that_is_not_returned,
    a_linear_loss_without_modules,
    a_gradient_of_zero,
    a_constant_loss,
    a_gradient_by_hand,
    no_value,
]


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 3))


@pytest.mark.parametrize("sound", SOUND)
@pytest.mark.parametrize(("make", "method"), [*((network, look) for look in LOOKS), *((linear, m) for m in LOOKS[:2])])
def test_sound_closures_that_look_suspicious_are_neither_refused_nor_warned_about(
    make: Callable[[], nn.Module], sound: Callable[..., Any], method: Method
) -> None:
    model = make()
    optimizer = wrap(method, model, "momentum")
    for x, _ in make_batches(4):
        optimizer.step(with_zeroing(optimizer, functools.partial(sound, model, x)))


def in_bfloat16(model: nn.Module, x: Tensor) -> Any:
    loss = model(x.to(next(model.parameters()).dtype)).square().mean()
    loss.backward()
    return loss


def under_autocast(model: nn.Module, x: Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).square().mean()
    loss.backward()
    return loss


@pytest.mark.parametrize("method", [SAM(rho=1e-8), RandomSAM(rho=1e-8), SAM(rho=1e-8, m=4)], ids=str)
@pytest.mark.parametrize(
    ("sound", "dtype"),
    [(in_bfloat16, torch.bfloat16), (under_autocast, torch.float32), (steps_of_the_weights, torch.float32)],
)
def test_a_radius_that_nothing_resolves_warns_once(sound: Callable[..., Any], dtype: Any, method: Method) -> None:
    model = network().to(dtype)
    optimizer = wrap(method, model, "sgd")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for x, _ in make_batches(4):
            optimizer.step(with_zeroing(optimizer, functools.partial(sound, model, x)))
    assert len(said) == 1
    assert "rho is too small for the precision" in str(said[0].message)


class Functional(nn.Module):
    """Layers whose weights are used without calling them, as in attention and with tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention = nn.Linear(6, 6), nn.MultiheadAttention(6, 2, batch_first=True)
        self.second = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.linear(x, self.first.weight, self.first.bias)
        return nn.functional.linear(self.attention(x, x, x)[0], self.second.weight)


def without_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sight, "needs_look", lambda *_: False)


@each_look
@pytest.mark.parametrize("make", [Functional, lambda: make_model("batchnorm"), lambda: make_model("dropout")])
def test_a_look_leaves_no_trace(make: Callable[[], nn.Module], method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in weights and statistics, nor in random streams, gradients, figures and the loss."""
    ends = []
    for looks in (True, False):
        if not looks:
            without_looks(monkeypatch)
        torch.manual_seed(0)
        model = make()
        if method == SAM(m=4) and any(isinstance(m, nn.BatchNorm1d) for m in model.modules()):
            pytest.skip("groups have no batch statistics")
        optimizer = wrap(method, model, "momentum")
        torch.manual_seed(5)
        seen = []
        for batch in make_batches(3):
            seen.append(optimizer.step(Closure(model, optimizer, batch)).item())
            seen += [optimizer.metrics, *(p.grad for p in model.parameters())]
        ends.append((snapshot(model, optimizer), seen, torch.get_rng_state()))
    assert same(*ends)


def test_a_step_of_one_pass_runs_another_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = wrap(RandomSAM(), model)
    seen = watch(model)
    assert [calls for calls in steps(model, optimizer, make_batches(4))] == [2, 1, 1, 1]
    assert len(seen) == 5
    assert optimizer.metrics["sam/gradients"] == 1


@pytest.mark.parametrize("method", [METHODS[name]() for name in ("sam", "gsam", "aesam", "looksam")], ids=str)
def test_a_step_of_two_passes_runs_no_other(method: Method) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model)
    assert all(calls <= 2 for calls in steps(model, optimizer, make_batches(6)))


@each_kind
def test_after_the_look_a_step_does_what_it_would_without(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operation by operation: nothing is kept, compared or waited for."""
    counts = []
    for looks in (True, False):
        if not looks:
            without_looks(monkeypatch)
        model = make_model("mlp")
        optimizer = wrap(method, model)
        batches = make_batches(12)
        list(steps(model, optimizer, batches[:8]))
        with CountOps() as ops:
            list(steps(model, optimizer, batches[8:]))
        counts.append((ops.calls, ops.made))
    assert counts[0] == counts[1]


def looks_taken(monkeypatch: pytest.MonkeyPatch) -> list[Look]:
    taken: list[Look] = []
    judge = Look.judge
    monkeypatch.setattr(Look, "judge", lambda self, *args: (taken.append(self), judge(self, *args))[1])
    return taken


def test_a_new_closure_of_the_same_code_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, model = looks_taken(monkeypatch), network()
    optimizer = wrap(SAM(), model)
    for x, y in make_batches(3):
        wrapped = functools.wraps(closure := lambda x=x, y=y: Closure(model, optimizer, (x, y))())
        optimizer.step(wrapped(lambda inner=closure: inner()))
        optimizer.step(functools.partial(closure))
        optimizer.step(closure)
    assert len(taken) == 1
    optimizer.step(lambda: Closure(model, optimizer, make_batches(1)[0])())
    assert len(taken) == 2


def test_two_closures_in_turn_are_looked_at_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, model = looks_taken(monkeypatch), network()
    optimizer = wrap(SAM(), model)
    for batch in make_batches(3):
        optimizer.step(lambda batch=batch: Closure(model, optimizer, batch)())
        optimizer.step(lambda batch=batch: (None, Closure(model, optimizer, batch)())[1])
    assert len(taken) == 2


def test_another_model_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, model = looks_taken(monkeypatch), network()
    optimizer = wrap(SAM(), model)
    list(steps(model, optimizer, make_batches(2)))
    optimizer._context.passes._model = nn.ModuleList([model])
    list(steps(model, optimizer, make_batches(2)))
    assert len(taken) == 2


def test_no_look_is_taken_while_the_radius_is_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, model = looks_taken(monkeypatch), network()
    optimizer = wrap(SAM(rho=Linear(0.0, 0.4)), model, total_steps=4)
    list(steps(model, optimizer, make_batches(1)))
    assert not taken
    list(steps(model, optimizer, make_batches(3)))
    assert len(taken) == 1


def test_after_a_zero_gradient_the_next_step_is_looked_at() -> None:
    model = network()
    optimizer = wrap(SAM(), model)
    x, y = make_batches(1)[0]
    inner = [lambda: ((0 * loss_of(model(x), y)).backward(), 0.0)[1]]
    closure = with_zeroing(optimizer, lambda: inner[0]())
    optimizer.step(closure)
    inner[0] = detached_parameters(model, x, y)
    refused(optimizer, closure, RuntimeError, REFUSAL)


def parametrized() -> nn.Module:
    model = network()
    parametrizations.weight_norm(model[0])
    parametrizations.orthogonal(model[2])
    return model


@each_look
def test_a_cache_of_parametrized_weights_around_the_step_does_not_hide_the_displaced_ones(method: Method) -> None:
    ends = []
    for around in (True, False):
        model = parametrized()
        optimizer = wrap(method, model, "momentum")
        for batch in make_batches(3):
            closure = Closure(model, optimizer, batch)
            if around:
                with parametrize.cached():
                    optimizer.step(closure)
            else:
                optimizer.step(closure)
        ends.append(snapshot(model, optimizer))
    assert same(*ends)


def test_a_users_cache_is_left_as_the_first_pass_left_it() -> None:
    model = parametrized()
    optimizer = wrap(SAM(), model)
    with parametrize.cached():
        weight = model[0].weight.detach().clone()
        cached = dict(parametrize._cache)
        assert cached
        model.zero_grad()
        optimizer.step(
            lambda samples=None: (parametrize._cache.clear(), Closure(model, optimizer, make_batches(1)[0])())[1]
        )
        kept = parametrize._cache[id(model[0]), "weight"]
        assert torch.equal(kept.detach(), weight)


@pytest.mark.parametrize("method", [SAM(rho=0.3), RandomSAM(rho=0.3)], ids=str)
def test_a_look_does_not_recompile_a_compiled_model(method: Method) -> None:
    """Nor in parts, where the first pass is looked at and compiles."""
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = network()
    fast = torch.compile(model, backend=backend)
    optimizer = wrap(method, model)
    plain = network()
    expected = wrap(method, plain)
    for batch in make_batches(3):
        optimizer.step(Closure(fast, optimizer, batch))
        expected.step(Closure(plain, expected, batch))
    assert len(compiled) == 1
    assert distance(model, plain) < 1e-6


def test_a_batch_that_reaches_half_the_model_is_accepted() -> None:
    """Layers that a batch does not reach have no gradient, and are no suspects."""
    model = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)])
    optimizer = wrap(SAM(), model)
    for turn, (x, y) in enumerate(make_batches(4)):
        half = model[turn % 2]

        def closure(half: nn.Module = half, batch: Batch = (x, y)) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(half(batch[0]), batch[1])
            loss.backward()
            return loss

        optimizer.step(closure)


def test_graphs_from_before_the_step_cannot_be_used_after_it() -> None:
    """As after any step in place: also a graph of the displaced weights, once they are back."""
    model, kept = network(), []
    optimizer = wrap(SAM(), model)
    x, y = make_batches(1)[0]
    for group in optimizer.param_groups:
        group["lr"] = 0.0

    def closure() -> Tensor:
        optimizer.zero_grad()
        kept.append(loss_of(model(x), y))
        kept[-1].backward(retain_graph=True)
        return kept[-1]

    optimizer.base_optimizer.step = lambda: None
    optimizer.step(closure)
    for loss in kept:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("method", [SAM(rho=0.05), MomentumSAM(rho=0.05)], ids=repr)
@pytest.mark.parametrize("refuse", [ValueError, SystemExit])
def test_a_look_does_not_stop_a_program_that_checks_its_domain(method: Method, refuse: type[BaseException]) -> None:
    """Weights that no layer owns are moved further by the look, and such a program may not compute there."""
    torch.manual_seed(0)
    model = nn.ParameterDict({"w": nn.Parameter(torch.randn(4, 3)), "scale": nn.Parameter(torch.ones(3))})
    optimizer = method.wrap(torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9), model=model)
    x = torch.randn(8, 4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        if float(model["scale"].detach().max()) > 1.2 or bool((model["scale"] <= 0).any()):
            raise refuse("outside of the domain")
        loss = ((x @ model["w"]) / model["scale"]).square().mean() + model["scale"].log().sum()
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert optimizer.metrics["sam/applied"] == 1.0


def _halves(x: Tensor) -> tuple[nn.Module, Callable[[], Tensor], Callable[[], Tensor]]:
    model = nn.Linear(4, 1)

    def one() -> Tensor:
        (loss := model(x).square().mean()).backward()
        return loss

    def other() -> Tensor:
        (loss := model(x).square().mean()).backward()
        return loss

    return model, one, other


def test_the_last_microbatch_of_a_step_may_be_another_closure() -> None:
    model, one, other = _halves(torch.randn(8, 4))
    base = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    optimizer = MomentumSAM(rho=0.5).wrap(base, model=model)
    for _ in range(3):
        optimizer.accumulate(one)
        optimizer.step(one)
        optimizer.zero_grad()
    optimizer.accumulate(one)  # not kept, as its kind is known
    optimizer.step(other)
    assert optimizer.metrics["sam/applied"] == 1.0


def test_all_microbatches_of_a_step_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    init = Look.__init__
    monkeypatch.setattr(Look, "__init__", lambda self, *args: (made.append(self), init(self, *args))[1])
    model, one, other = _halves(torch.randn(8, 4))
    base = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    optimizer = MomentumSAM(rho=0.5).wrap(base, model=model)
    for _ in range(6):
        optimizer.accumulate(lambda: one())
        optimizer.step(lambda: other())
        optimizer.zero_grad()
    assert len(made) == 2


def test_what_can_never_be_judged_is_looked_at_ten_times(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    init = Look.__init__
    monkeypatch.setattr(Look, "__init__", lambda self, *args: (made.append(self), init(self, *args))[1])
    model, x = nn.Linear(4, 1), torch.zeros(8, 4)
    model.bias.requires_grad_(False)
    optimizer = RandomSAM(rho=0.5).wrap(torch.optim.SGD(model.parameters(), lr=0.01), model=model)
    for _ in range(15):
        optimizer.zero_grad()
        optimizer.step(lambda: model(x).square().mean(1))
    assert len(made) == 10


def test_a_refusal_leaves_the_gradients_of_a_maximized_loss_as_the_closure_does() -> None:
    model = make_model("mlp")
    optimizer = SAM(rho=0.3).wrap(torch.optim.SGD(model.parameters(), lr=0.1, maximize=True), model=model)
    expected = [torch.randn_like(p) for p in model.parameters()]

    def closure() -> float:
        for p, gradient in zip(model.parameters(), expected, strict=True):
            p.grad = gradient.clone()
        return 1.0

    with pytest.raises(RuntimeError, match="The closure does not see"):
        optimizer.step(closure)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True))
