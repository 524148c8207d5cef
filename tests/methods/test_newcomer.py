"""What a newcomer writes first, from another package or from memory, is answered with what to write instead."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import sam_algos
from sam_algos import AESAM, SAM, AELookSAM, Interval, Method, PNorm, Policy, SharpnessAware
from sam_algos.core.objective.view import Step
from sam_algos.core.parts import Decision

WRAP = r"\.wrap\(torch\.optim\.SGD\(model\.parameters\(\), lr=0\.1\), model=model\)"


def model_and_base() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(2, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


SIGNATURES: dict[str, Callable[[Any, nn.Module, torch.optim.Optimizer], Any]] = {
    "davda54": lambda cls, model, base: cls(model.parameters(), torch.optim.SGD, rho=0.05),
    "davda54, in full": lambda cls, model, base: cls(
        model.parameters(), base_optimizer=torch.optim.SGD, rho=0.05, adaptive=False, lr=0.1, momentum=0.9
    ),
    "a list of parameters": lambda cls, model, base: cls(list(model.parameters()), torch.optim.AdamW),
    "groups": lambda cls, model, base: cls(params=[{"params": model.parameters()}], base_optimizer=torch.optim.SGD),
    "Composer's optimizer": lambda cls, model, base: cls(base, rho=0.05),
    "an optimizer by name": lambda cls, model, base: cls(optimizer=base),
    "SamsungLabs": lambda cls, model, base: cls(base, model, rho=0.5, eta=0.01),
    "the base optimizer's options": lambda cls, model, base: cls(rho=0.05, lr=0.1),
}


@pytest.mark.parametrize(
    ("cls", "call"), [(SAM, call) for call in SIGNATURES.values()] + [(AESAM, SIGNATURES["davda54, in full"])]
)
def test_an_optimizers_signature_is_answered_with_wrap(call: Callable[..., Any], cls: type[Method]) -> None:
    with pytest.raises(TypeError, match=rf"{cls.__name__}\(\) takes the method's options only.*{WRAP}"):
        call(cls, *model_and_base())


def test_the_parameters_are_not_used_up_by_the_refusal() -> None:
    model, _ = model_and_base()
    params = model.parameters()
    with pytest.raises(TypeError):
        SAM(params, torch.optim.SGD)  # pyright: ignore
    assert len(list(params)) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SAM(adaptive=True), r"SAM\(\) got .*argument 'adaptive': the adaptive ball is ASAM\(rho=...\)"),
        (lambda: SAM(roh=0.1), r"SAM\(\) got .*argument 'roh': did you mean 'rho'\? Its arguments are rho, interval,"),
        (lambda: AESAM(targetfraction=0.1), r"did you mean 'target_fraction'\?"),
        (lambda: PNorm(roh=0.1), r"PNorm\(\) got .* did you mean 'rho'\? Its arguments are rho, p, epsilon\."),
        (lambda: Interval(every=2), r"Interval\(\) got .*'every': Its arguments are k\."),
        (lambda: dataclasses.replace(SAM(), intervall=2), r"did you mean 'interval'\?"),
        (lambda: SharpnessAware(polcy=Interval()), r"did you mean 'policy'\?"),
    ],
)
def test_an_unknown_option_is_answered_with_what_there_is(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize("cls", [SAM, AELookSAM])
def test_a_method_names_all_its_options(cls: Any) -> None:
    with pytest.raises(TypeError) as error:
        cls(no_such_option=1)
    named = str(error.value).partition("Its arguments are ")[2].rstrip(".").split(", ")
    assert named == [field.name for field in dataclasses.fields(cls) if field.init and not field.kw_only] + [
        field.name for field in dataclasses.fields(cls) if field.init and field.kw_only
    ]


class Own(Policy):
    """A part with a constructor of its own."""

    def __init__(self, *, every: int, **rest: Any) -> None:
        object.__setattr__(self, "every", every)

    def decide(self, step: Step) -> Decision:
        return Decision(True)


def test_a_part_may_have_a_constructor_of_its_own() -> None:
    assert Own(every=3, anything=1).every == 3  # pyright: ignore[reportAttributeAccessIssue]
    method = SAM(rho=0.1, interval=2)
    assert copy.copy(method) == copy.deepcopy(method) == pickle.loads(pickle.dumps(method)) == method


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, base: SAM().wrap(base, m), r"SAM\.wrap\(\): too many positional.*wrap\(optimizer, model=model\)"),
        (lambda m, base: SAM().wrap(base), r"missing a required .*argument: 'model'.*wrap\(optimizer, model=model\)"),
        (lambda m, base: SAM().wrap(model=m), r"missing a required .*argument: 'optimizer'"),
        (lambda m, base: SAM().wrap(base, model=m, steps=9), r"unexpected keyword argument 'steps'.*total_steps="),
        (lambda m, base: SAM.wrap(base, model=m), r"on the class; make a method first: SAM\(rho=0.05\)\.wrap"),
    ],
)
def test_wrap_says_how_it_is_called(call: Callable[..., Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call(*model_and_base())


@pytest.mark.parametrize("name", ["first_step", "second_step", "ascent_step", "descent_step"])
def test_first_step_and_second_step_are_answered_with_step_closure(name: str) -> None:
    model, base = model_and_base()
    optimizer: Any = SAM().wrap(base, model=model)
    with pytest.raises(AttributeError, match=rf"'SGD' object has no attribute '{name}'.*optimizer\.step\(closure\)"):
        getattr(optimizer, name)(zero_grad=True)
    assert not hasattr(optimizer, name)


def test_a_base_optimizer_with_halves_of_its_own_keeps_them() -> None:
    class Halves(torch.optim.SGD):
        def first_step(self) -> str:
            return "mine"

    model, _ = model_and_base()
    optimizer: Any = SAM().wrap(Halves(model.parameters(), lr=0.1), model=model)
    assert optimizer.first_step() == "mine"
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'$"):
        _ = optimizer.nothing


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Sam", "SAM"),
        ("sam", "SAM"),
        ("AeSam", "AESAM"),
        ("AE_SAM", "AESAM"),
        ("look_sam", "LookSAM"),
        ("SharpnesAware", "SharpnessAware"),
        ("recalibrat", "recalibrate"),
    ],
)
def test_a_name_in_another_case_is_answered_with_the_right_one(name: str, meant: str) -> None:
    with pytest.raises(AttributeError, match=rf"'sam_algos' has no attribute '{name}'\. Did you mean '{meant}'\?"):
        getattr(sam_algos, name)


def test_a_name_unlike_any_gets_no_suggestion() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'Shampoo'$"):
        _ = sam_algos.Shampoo  # pyright: ignore[reportAttributeAccessIssue]


def test_a_name_of_the_trainer_says_where_it_is() -> None:
    with pytest.raises(AttributeError, match=r"from sam_algos\.trainer import RecalibrateBatchNorm"):
        _ = sam_algos.RecalibrateBatchNorm  # pyright: ignore[reportAttributeAccessIssue]
