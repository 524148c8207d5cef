"""Nothing wrong in silence: autocast, clipping and aliases of weights around a step are seen by both passes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_algos import AESAM, SAM, LookSAM, Method
from tests.cases import Closure, distance, make_batches, make_model, model_of, same, snapshot, steps, wrap


def under_autocast(method: Method | None, around: bool, count: int = 5) -> nn.Module:
    model = make_model("mlp")
    optimizer = wrap(method, model, "sgd")
    for batch in make_batches(count):
        closure = Closure(model, optimizer, batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            if around:
                optimizer.step(closure)
        if not around:

            def inside(closure: Closure = closure) -> Tensor:
                with torch.autocast("cpu", torch.bfloat16):
                    return closure()

            optimizer.step(inside)
    return model


@pytest.mark.parametrize("method", [SAM(rho=2.0), LookSAM(rho=2.0, k=2)], ids=str)
def test_autocast_around_the_step_is_autocast_inside_the_closure(method: Method) -> None:
    """It keeps weights in half precision, and the second pass must not see those of the first."""
    ours = under_autocast(method, around=True)
    assert distance(ours, under_autocast(method, around=False)) == 0.0
    assert distance(ours, under_autocast(None, around=True)) > 1e-3


def test_clipping_before_the_base_step_acts_once_and_on_the_final_gradient() -> None:
    """Decisions and the logged norm see the unclipped one."""
    clipped, free = (make_model("mlp") for _ in range(2))
    lengths: list[float] = []
    runs = []
    for model, limit in ((clipped, 1e-3), (free, None)):
        optimizer = wrap(AESAM(delta=0.5, lambda_1=0.0, lambda_2=0.0), model, "sgd")
        for group in optimizer.param_groups:
            group["lr"] = 0.0 if limit is None else 1e-9

        def clip(*_: Any, model: nn.Module = model, limit: float | None = limit) -> None:
            if limit is not None:
                lengths.append(float(nn.utils.clip_grad_norm_(model.parameters(), limit)))

        optimizer.register_step_pre_hook(clip)
        runs.append([])
        for batch in make_batches(8):
            optimizer.step(Closure(model, optimizer, batch))
            runs[-1].append((optimizer.metrics["sam/applied"], optimizer.metrics["sam/grad_norm"]))
    assert len(lengths) == 8
    assert min(lengths) > 1e-3
    for (sharp, norm), (free_sharp, free_norm) in zip(*runs, strict=True):
        assert sharp == free_sharp
        assert norm == pytest.approx(free_norm, rel=1e-4)
    assert {sharp for sharp, _ in runs[0]} == {0.0, 1.0}


class Alias(nn.Module):
    """Reads a weight through another name: a parameter outside the optimizer, or a buffer that is a view of it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.linspace(1, 2, 6))
        if kind == "parameter":
            self.b = nn.Parameter(torch.empty(6), requires_grad=False)
            self.b.data = self.a.data
        elif kind == "buffer":
            self.register_buffer("b", self.a.data.view(2, 3))
        else:
            self.register_buffer("b", self.a.data[1:4])
        self.kind, self.same = kind, []

    def forward(self, x: Tensor) -> Tensor:
        expected = {"parameter": self.a, "buffer": self.a.view(2, 3), "part": self.a[1:4]}[self.kind]
        assert torch.equal(self.b, expected), "an alias that does not follow"
        return x * self.a


@pytest.mark.parametrize("kind", ["parameter", "buffer", "part"])
@pytest.mark.parametrize("method", [SAM(rho=0.5), LookSAM(rho=0.5, k=2)], ids=str)
def test_aliases_of_a_weight_see_the_perturbation(method: Method, kind: str) -> None:
    model = Alias(kind)
    optimizer = method.wrap(torch.optim.SGD([model.a], lr=0.1), model=model)
    before = snapshot(model)
    for x, _ in make_batches(4):
        optimizer.step(Closure(model, optimizer, (x, torch.zeros(len(x), 6))))
    assert not same(snapshot(model), before)
    assert optimizer.metrics["sam/fraction"] > 0
    model(torch.ones(6))


class Counter:
    """An object of the program, which is no module."""

    def __init__(self) -> None:
        self.passes, self.losses, self.by_class = 0, [], {"a": [0]}
        self.long: list[int] = list(range(5000))

    def count(self) -> None:
        self.passes += 1
        self.losses.append(self.passes)
        self.by_class["a"].append(1)
        self.long.append(self.passes)
        self.new = self.passes


@pytest.mark.parametrize("clone", [lambda o: o, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_objects_that_are_named_count_one_pass_and_others_every_pass(clone: Any) -> None:
    original: Any = wrap(SAM(), make_model("mlp"))
    original.count_once(lambda: [])  # which no copy takes with it
    optimizer = clone(original)
    named, other, model = Counter(), Counter(), model_of(optimizer)
    optimizer.count_once(lambda: [named])
    batches = make_batches(3)
    for batch in batches:

        def losses(batch: Any = batch) -> Any:
            named.count()
            other.count()
            return (model(batch[0]) - batch[1]).square().mean(1)

        optimizer.step(losses)
    assert (named.passes, named.losses, named.new) == (3, [1, 2, 3], 3)
    assert named.by_class == {"a": [0, 1, 1, 1]} and named.long[5000:] == [1, 2, 3]
    assert other.passes == 6 and len(other.long) == 5006


def test_a_data_set_among_the_objects_of_a_program_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    model = make_model("mlp")
    optimizer = SAM().wrap(torch.optim.SGD(model.parameters(), lr=0.05), model=model)
    program = SimpleNamespace(data=[{"x": torch.ones(3)} for _ in range(100)], counts={"seen": torch.zeros(3)})
    optimizer.count_once(lambda: [program])
    cloned: list[Tensor] = []
    clone = Tensor.clone
    monkeypatch.setattr(Tensor, "clone", lambda self, **options: (cloned.append(self), clone(self, **options))[1])
    list(steps(model, optimizer, make_batches(2)))
    assert not any(tensor is sample["x"] for tensor in cloned for sample in program.data)
    assert any(tensor is program.counts["seen"] for tensor in cloned)
