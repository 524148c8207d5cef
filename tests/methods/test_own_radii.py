"""A parameter group's own radius stays the group's, whoever replaces the groups."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from sam_algos import SAM, Cosine, LookSAM, Method, MomentumSAM, RandomSAM
from tests.cases import Closure, make_batches, make_model, same, snapshot, steps, watch


def groups(model: nn.Module, **first: Any) -> list[dict[str, Any]]:
    layers = list(model.children())
    rest = [p for layer in layers[1:] for p in layer.parameters()]
    return [{"params": list(layers[0].parameters()), **first}, {"params": rest}]


def wrapped(method: Method, model: nn.Module, kind: type = torch.optim.SGD, **first: Any) -> Any:
    base = kind(groups(model, **first), lr=0.05, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    return method.wrap(base, model=model, total_steps=20)


def plain_checkpoint(kind: type = torch.optim.SGD, **first: Any) -> dict[str, Any]:
    """A state after plain training, whose groups have the entries that plain training gives them."""
    model = make_model("mlp")
    base = kind(groups(model, **first), lr=0.01, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    list(steps(model, base, make_batches(2)))
    return base.state_dict()


def moved(model: nn.Module, optimizer: Any) -> list[bool]:
    """Whether the first layer and the others were displaced in a step."""
    seen = watch(model)
    optimizer.step(Closure(model, optimizer, make_batches(1, seed=5)[0]))
    count = sum(p.numel() for p in next(model.children()).parameters())
    difference = seen[-1].weights - seen[0].weights
    return [bool(part.any()) for part in (difference[:count], difference[count:])]


def into_the_wrapper(optimizer: Any, model: nn.Module, state: dict[str, Any]) -> None:
    optimizer.load_state_dict(state)


def into_the_base(optimizer: Any, model: nn.Module, state: dict[str, Any]) -> None:
    """As Lightning and Hugging Face do."""
    optimizer.base_optimizer.load_state_dict(state)


def past_the_hooks(optimizer: Any, model: nn.Module, state: dict[str, Any]) -> None:
    """As optimizers do whose ``load_state_dict`` is their own."""
    base = optimizer.base_optimizer
    pairs = zip(base.param_groups, state["param_groups"], strict=True)
    base.param_groups = [{**saved, "params": group["params"]} for group, saved in pairs]


def distributed(optimizer: Any, model: nn.Module, state: dict[str, Any]) -> None:
    base = optimizer.base_optimizer
    named = get_optimizer_state_dict(model, base)
    for group in named["param_groups"]:
        group.pop("rho", None)
    set_optimizer_state_dict(model, base, named)


WAYS: list[Callable[..., None]] = [into_the_wrapper, into_the_base, past_the_hooks, distributed]


@pytest.mark.parametrize(
    ("method", "kind", "way"),
    [
        *((SAM(rho=0.5), kind, way) for kind in (torch.optim.SGD, torch.optim.AdamW) for way in WAYS),
        *((LookSAM(rho=0.5, k=1), torch.optim.AdamW, way) for way in WAYS),
        (SAM(rho=Cosine(0.5, 0.4)), torch.optim.SGD, into_the_wrapper),
    ],
)
def test_survives_a_checkpoint_of_plain_training(method: Method, kind: type, way: Callable[..., None]) -> None:
    model = make_model("mlp")
    optimizer = wrapped(method, model, kind, rho=0.0)
    way(optimizer, model, plain_checkpoint(kind))
    assert moved(model, optimizer) == [False, True]
    assert [group.get("rho") for group in optimizer.param_groups] == [0.0, None]


@pytest.mark.parametrize("way", [into_the_wrapper, into_the_base, distributed])
def test_is_there_as_soon_as_the_checkpoint_is_loaded(way: Callable[..., None]) -> None:
    """A checkpoint that is written before the next step has it."""
    model = make_model("mlp")
    optimizer = wrapped(SAM(), model, rho=0.0)
    way(optimizer, model, plain_checkpoint())
    assert optimizer.state_dict()["param_groups"][0]["rho"] == 0.0


@pytest.mark.parametrize("way", [into_the_wrapper, into_the_base, past_the_hooks])
def test_in_a_checkpoint_counts_as_its_learning_rate_does(way: Callable[..., None]) -> None:
    model = make_model("mlp")
    optimizer = wrapped(SAM(rho=0.5), model, rho=0.3)
    way(optimizer, model, plain_checkpoint(rho=0.0))
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01]
    assert moved(model, optimizer) == [False, True]


def test_changed_during_training_is_the_one_that_survives() -> None:
    model = make_model("mlp")
    optimizer = wrapped(SAM(rho=0.5), model, rho=0.3)
    optimizer.param_groups[0]["rho"] = 0.0
    optimizer.step(Closure(model, optimizer, make_batches(1)[0]))
    optimizer.load_state_dict(plain_checkpoint())
    assert moved(model, optimizer) == [False, True]


@pytest.mark.parametrize("add", [False, True], ids=["", "while a group is added"])
def test_taken_away_by_the_program_stays_away(add: bool) -> None:
    model = make_model("mlp")
    optimizer = wrapped(SAM(rho=0.5), model, rho=0.0)
    others = optimizer.param_groups.pop()
    if not add:
        optimizer.add_param_group(others)
    optimizer.step(Closure(model, optimizer, make_batches(1)[0]))
    del optimizer.param_groups[0]["rho"]
    if add:
        optimizer.add_param_group(others)
    assert moved(model, optimizer) == [True, True]


@pytest.mark.parametrize("owner", ["base_optimizer", None])
def test_of_a_group_that_was_added_later_survives(owner: str | None) -> None:
    model = make_model("mlp")
    layers = list(model.children())
    base = torch.optim.SGD(layers[1].parameters(), lr=0.05, momentum=0.9)
    optimizer: Any = SAM(rho=0.5).wrap(base, model=model)
    added = {"params": list(layers[0].parameters()), "rho": 0.0}
    (getattr(optimizer, owner) if owner else optimizer).add_param_group(added)
    optimizer.step(Closure(model, optimizer, make_batches(1)[0]))
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group.pop("rho", None)
    optimizer.base_optimizer.load_state_dict(state)
    assert moved(model, optimizer)[0] is False
    assert [group.get("rho") for group in optimizer.param_groups] == [None, 0.0]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
def test_survives_in_a_copy_of_the_optimizer(copied: Callable[..., Any]) -> None:
    """Hooks are not copied with an optimizer."""
    model = make_model("mlp")
    model, optimizer = copied((model, wrapped(SAM(rho=0.5), model, rho=0.0)))
    optimizer.base_optimizer.load_state_dict(plain_checkpoint())
    assert optimizer.param_groups[0]["rho"] == 0.0
    assert moved(model, optimizer) == [False, True]


@pytest.mark.parametrize("rho", [-0.1, float("nan"), "0.1"], ids=repr)
def test_that_became_no_radius_is_refused_before_the_step(rho: Any) -> None:
    model = make_model("mlp")
    optimizer = wrapped(SAM(), model, rho=0.1)
    optimizer.base_optimizer.param_groups[0]["rho"] = rho
    before = snapshot(model)
    closure = Closure(model, optimizer, make_batches(1)[0])
    with pytest.raises(ValueError, match=r"Parameter group with rho=.*: rho must be a finite number >= 0"):
        optimizer.step(closure)
    assert closure.calls == 0
    assert same(before, snapshot(model))


@pytest.mark.parametrize("method", [SAM(rho=0.5), RandomSAM(rho=0.5), MomentumSAM(rho=0.5)], ids=str)
def test_of_zero_in_every_group_is_the_base_optimizer(method: Method) -> None:
    ends = []
    for rho in (0.0, None):
        model = make_model("dropout")
        options = [{"params": list(model.parameters()), **({} if rho is None else {"rho": rho})}]
        base = torch.optim.SGD(options, lr=0.05, momentum=0.9)
        optimizer: Any = base if rho is None else method.wrap(base, model=model)
        torch.manual_seed(3)
        assert list(steps(model, optimizer, make_batches(4))) == [1, 1, 1, 1]
        ends.append(snapshot(model))
    assert same(*ends)
