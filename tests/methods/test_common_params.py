"""Parameters of every kind: how they are stored, shared, used and grouped."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sam_algos import SAM, Method
from sam_algos.core.passes.selection import EVERYTHING, Selection
from tests import references
from tests.cases import (
    Closure,
    Notes,
    distance,
    each_ascent,
    each_method,
    each_method_for_any_model,
    make_batches,
    make_model,
    reads_losses,
    same,
    snapshot,
    steps,
    wrap,
)


class Tied(nn.Module):
    """Uses one parameter twice, and one tensor under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 6), nn.Linear(6, 6)
        self.decode.weight = self.encode.weight
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.decode(torch.tanh(self.encode(x))))


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 2).to(memory_format=torch.channels_last)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        image = x.view(-1, 2, 1, 3).repeat(1, 1, 2, 1).contiguous(memory_format=torch.channels_last)
        return self.out(torch.tanh(self.conv(image)).flatten(1))


class Transposed(nn.Module):
    """A parameter that is dense in its own memory, in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3).t())

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight.t())


def in_one_buffer(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Parameters that are views of one flat tensor, as cuDNN's RNNs and flat-buffer optimizers make them."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)
    flat = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(flat, model.parameters())
    return model


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    return model


class WithExtra(nn.Module):
    """Holds a parameter that no pass uses, or only those passes whose numbers are given."""

    def __init__(self, extra: Tensor, used_in: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.extra = nn.Parameter(extra)
        self.used_in, self.passes = used_in, Notes()

    def forward(self, x: Tensor) -> Tensor:
        self.passes.taken.append(len(x))
        out = self.body(x)
        return out * (1 + self.extra.abs().sum()) if len(self.passes.taken) in self.used_in else out


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3, dtype=torch.complex64))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.weight.dtype) @ self.weight).abs() + self.bias


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(2, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x.view(3, -1, 2))[0][-1])


class LowPrecision(nn.Module):
    """A body in bfloat16 under a head in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8).bfloat16(), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x.bfloat16())).float())


KINDS: dict[str, Callable[[], nn.Module]] = {
    "tied": Tied,
    "channels last": ChannelsLast,
    "transposed": Transposed,
    "views of one buffer": in_one_buffer,
    "frozen": frozen,
    "unused": lambda: WithExtra(torch.ones(2)),
    "empty": lambda: WithExtra(torch.ones(0, 3), used_in=tuple(range(99))),
    "one number": lambda: WithExtra(torch.tensor(0.5), used_in=tuple(range(99))),
    "all zero": lambda: WithExtra(torch.zeros(4), used_in=tuple(range(99))),
    "complex": Complex,
    "recurrent": Recurrent,
    "bfloat16 and float32": LowPrecision,
}
DOUBLE = ("tied", "channels last", "transposed", "views of one buffer", "empty", "one number", "recurrent")


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return KINDS[kind]()


class OfEveryKind(nn.Module):
    """One network with parameters of every kind, for the arithmetic of each method."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: make() for name, make in KINDS.items()})
        self.parts["batchnorm"] = make_model("batchnorm")

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([part(x) for part in self.parts.values()]).sum(0)


@each_ascent
@pytest.mark.parametrize("kind", KINDS)
def test_trains_from_weights_restored_to_the_last_bit(method: Method, kind: str) -> None:
    trains_from_restored_weights(method, build(kind), kind)


@each_method
def test_trains_a_network_with_parameters_of_every_kind(method: Method) -> None:
    torch.manual_seed(0)
    trains_from_restored_weights(method, OfEveryKind(), "every kind")


def trains_from_restored_weights(method: Method, model: nn.Module, kind: str) -> None:
    optimizer = wrap(method, model)
    start = snapshot(model, buffers=False)["model"]
    batches = [(x[:6], y[:6]) for x, y in make_batches(6)]
    addresses = [p.data_ptr() for p in model.parameters()]
    clean: list[dict] = []
    pushed: set[str] = set()
    optimizer.base_optimizer.register_step_pre_hook(lambda *_: clean.append(snapshot(model, buffers=False)["model"]))
    for batch in batches:
        before = snapshot(model, buffers=False)["model"]
        optimizer.step(Closure(model, optimizer, batch))
        assert same(clean.pop(), before)
        assert [p.data_ptr() for p in model.parameters()] == addresses
        pushed |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    for name, p in model.named_parameters():
        assert p.isfinite().all()
        if "body" not in name and "bfloat16" not in name:  # where an update may be lost to rounding
            moved = p.numel() > 0 and not torch.equal(p, start[name])
            may_stay = "all zero" in f"{kind}, {name}" and name not in pushed
            assert moved == (p.grad is not None and p.numel() > 0 and not may_stay), name


@pytest.mark.parametrize("kind", DOUBLE)
def test_storage_does_not_matter_to_the_result(kind: str) -> None:
    ours, theirs = build(kind).double(), build(kind).double()
    if kind == "views of one buffer":  # which no parameter is any more after a change of type
        torch.manual_seed(0)
        ours = in_one_buffer(torch.float64)
        theirs.load_state_dict(ours.state_dict())
    batches = [(x[:6], y[:6]) for x, y in make_batches(8, torch.float64)]
    references.train(theirs, batches, references.sam(0.3), references.sgd(0.05, momentum=0.9))
    list(steps(ours, wrap(SAM(rho=0.3), ours), batches))
    assert distance(ours, theirs) <= 1e-12


@each_method_for_any_model
@pytest.mark.parametrize("used_in", [(1, 4), (2, 5, 6)], ids=str)
def test_a_parameter_may_be_used_in_one_pass_only(method: Method, used_in: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = WithExtra(torch.ones(2), used_in)
    optimizer = wrap(method, model)
    for _ in steps(model, optimizer, make_batches(8)):
        assert all(p.isfinite().all() for p in model.parameters())
    model.used_in = tuple(range(99))
    list(steps(model, optimizer, make_batches(8)))
    assert optimizer.method_state_dict()["step"] == 16


@each_method
def test_no_parameter_at_all_may_receive_a_gradient(method: Method) -> None:
    """All frozen for a while, as gradual unfreezing does."""
    model = make_model("mlp")
    optimizer = wrap(method, model)
    [(x, y)] = make_batches(1)
    model.requires_grad_(False)
    before = snapshot(model)
    losses = Closure(model, optimizer, (x, y)).losses

    def closure(samples: Selection = EVERYTHING) -> Tensor:
        return losses(samples) if reads_losses(optimizer) else losses(samples).mean()

    for _ in range(2):
        optimizer.step(closure)
    assert same(snapshot(model), before)
    assert optimizer.metrics["sam/nonfinite"] == 0
    model.requires_grad_(True)
    optimizer.step(Closure(model, optimizer, (x, y)))
    assert not same(snapshot(model), before)


@each_method
def test_a_gradient_of_zero_moves_nothing(method: Method) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model)
    before = snapshot(model)
    [batch] = make_batches(1)
    for _ in range(3):
        optimizer.step(Closure(model, optimizer, batch, loss=lambda out, y: out * 0))
    assert same(snapshot(model), before)


@each_ascent
def test_a_sparse_gradient_is_refused_before_anything_changes(method: Method) -> None:
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    optimizer = wrap(method, model, "sgd")
    before = snapshot(model, optimizer)
    batch = (torch.tensor([[0, 1], [2, 3]]), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"'0.weight' has a torch.sparse_coo gradient.*sparse=False"):
        optimizer.step(Closure(model, optimizer, batch))
    assert same(snapshot(model, optimizer), before)
