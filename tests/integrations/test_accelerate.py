"""accelerate in a plain loop."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from sam_algos import AESAM, LookSAM, Method
from tests.cases import same
from tests.integrations.page import METHOD, grouped, loader, network, reference, run, sgd, trained

accelerate: Any = pytest.importorskip("accelerate", reason="needs accelerate: pip install 'sam_algos[frameworks]'")

pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own


def undropped() -> Any:
    """Without dropout, as accelerate's loader draws from the random stream."""
    model = network()
    model[3].p = 0.0
    return model


def snippet(path: Path, AESAM: Any = AESAM, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    model = undropped()
    names = {"model": model, "base": sgd(model), "data": loader(), "path": path, "AESAM": AESAM}
    return run("accelerate", **names, options={"cpu": True, **options}), dict(model.state_dict())


def test_the_snippet_trains_as_a_plain_loop_does(tmp_path: Path) -> None:
    _, state = snippet(tmp_path)
    assert same(state, trained(grouped(loader()), undropped(), clip=1.0))


def test_bf16(tmp_path: Path) -> None:
    names, _ = snippet(tmp_path, mixed_precision="bf16")
    assert names["optimizer"].method_state_dict()["step"] == len(loader())


class Resumed(accelerate.Accelerator):
    """Loads a checkpoint when the snippet has registered everything."""

    path: Any = None

    def register_for_checkpointing(self, *objects: Any) -> None:
        super().register_for_checkpointing(*objects)
        self.load_state(self.path)


@pytest.mark.parametrize("method", [METHOD, LookSAM(rho=0.5, k=3)], ids=str)
def test_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first = snippet(tmp_path / "first", AESAM=lambda **_: method)
    monkeypatch.setattr(accelerate, "Accelerator", Resumed)
    monkeypatch.setattr(Resumed, "path", tmp_path / "first")
    names, state = snippet(tmp_path / "second", AESAM=lambda **_: method)
    model = undropped()
    optimizer = reference(model, grouped(loader()) + grouped(loader()), method=method, clip=1.0)
    assert same(state, dict(model.state_dict())) and not same(state, first)
    assert names["optimizer"].method_state_dict() == optimizer.method_state_dict()


def test_a_loop_that_steps_without_the_passes_is_refused() -> None:
    model = network()
    optimizer = METHOD.wrap(sgd(model), model=model, total_steps=1000)
    prepared = accelerate.Accelerator(cpu=True).prepare(optimizer)
    model(torch.ones(2, 6)).sum().backward()
    with pytest.raises(TypeError, match=r"optimizer.backward\(closure\)"):
        prepared.step()


def test_microbatches_of_its_own_are_refused() -> None:
    """Each call of `backward` would be a step of its own, of which the last alone counts."""
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = network()
    base = sgd(model)
    model, prepared, data = accelerator.prepare(model, base, loader())
    optimizer = METHOD.wrap(base, model=model, total_steps=1000)

    def train() -> None:
        for x, y in data:

            def closure(x: Any = x, y: Any = y) -> Any:
                loss = torch.nn.functional.cross_entropy(model(x), y)
                accelerator.backward(loss)
                return loss

            with accelerator.accumulate(model):
                optimizer.backward(closure)
                prepared.step()
                prepared.zero_grad()

    with pytest.raises(RuntimeError, match="did not zero them"):
        train()


def test_its_scheduler_sees_the_step() -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = network()
    base = sgd(model)
    model, prepared, scheduler = accelerator.prepare(model, base, torch.optim.lr_scheduler.StepLR(base, 1, 0.5))
    optimizer = METHOD.wrap(base, model=model, total_steps=1000)
    for x, y in loader():

        def closure(x: Any = x, y: Any = y) -> Any:
            loss = torch.nn.functional.cross_entropy(model(x), y)
            accelerator.backward(loss)
            return loss

        optimizer.backward(closure)
        prepared.step()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scheduler.step()
        prepared.zero_grad()
    assert base.param_groups[0]["lr"] == 0.1 * 0.5 ** len(loader())
