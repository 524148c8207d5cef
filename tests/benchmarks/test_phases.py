"""How a step is divided into ranges, and how contenders' closures and optimizers are put together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import DeviceType
from torch.profiler import record_function

from benchmarks.contenders import Contender, alike, contenders, fused
from benchmarks.loops import Seat, closure_for
from benchmarks.networks import VisionTransformer, resnet
from benchmarks.phases import Ranged, Ranges, Span, own_times, phase_seconds
from benchmarks.summary import PHASES
from benchmarks.workloads import Task
from sam_algos import SAM, Method, MomentumSAM


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 9)), max_size=6))
def test_own_times_of_nested_ranges_fill_the_outermost(inner: list[tuple[str, int, int]]):
    """Ranges within one another, each half as long as what is around it and somewhere in it."""
    start, end, spans = 0, 1 << 12, [Span("whole", 0, 1 << 12)]
    for name, shift, _ in inner:
        length = (end - start) // 2
        start += shift * (end - start - length) // 9
        end = start + length
        spans.append(Span(name, start, end))
    own = own_times(spans)
    assert sum(own.values()) == 1 << 12 and min(own.values()) >= 0


class Ranging(torch.optim.SGD):
    """A step that names its ranges as `sam_algos` does."""

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        with record_function("sam/replay"):
            loss = closure()
        with record_function("sam/ascent"), record_function("sam/norm"):
            pass
        for phase in ("displace", "restore", "descent"):
            with record_function(f"sam/{phase}"):
                pass
        super().step()
        return loss


def test_ranges_of_an_optimizer_that_names_them():
    model = nn.Linear(2, 1)
    optimizer, ranges = Ranged(Ranging(model.parameters(), lr=0.1)), Ranges()

    def closure() -> torch.Tensor:
        loss = model(torch.ones(1, 2)).sum()
        loss.backward()
        return loss

    for _ in range(2):
        ranges.start()
        optimizer.step(closure)
        ranges.stop()
    first, second = ranges.drain()
    assert list(first) == [*PHASES, "rest"] and ranges.drain() == []
    assert all(seconds > 0 for seconds in [*first.values(), *second.values()])
    assert optimizer.passes == 1 and optimizer.figures() == {}


def event(name: str, device: DeviceType, start: int, end: int, number: int = 0, launched_by: int = 0) -> Any:
    """What a profiler gives of one range, operation or kernel."""
    return SimpleNamespace(
        name=lambda: name, device_type=lambda: device, start_ns=lambda: start, end_ns=lambda: end,
        duration_ns=lambda: end - start, correlation_id=lambda: number, linked_correlation_id=lambda: launched_by,
        is_user_annotation=lambda: name.startswith("sam/"),
    )  # fmt: skip


def test_on_a_gpu_a_phase_takes_the_time_of_the_kernels_that_were_launched_in_it():
    host, device = DeviceType.CPU, DeviceType.CUDA
    found = phase_seconds([
        event("benchmarks/step", host, 0, 10**9),
        event("sam/pass", host, 0, 400),
        event("sam/ascent", host, 500, 900),
        event("sam/norm", host, 600, 700),
        event("aten::mm", host, 10, 20, number=1),
        event("aten::norm", host, 610, 620, number=2),
        event("aten::add", host, 800, 810, number=3),
        event("cudaLaunchKernel", host, 11, 12, number=2, launched_by=1),
        event("gemm", device, 5000, 5000 + 3 * 10**8, number=2, launched_by=1),
        event("reduce", device, 6000, 6000 + 2 * 10**8, number=5, launched_by=2),
        event("add", device, 7000, 7000 + 10**8, number=6, launched_by=3),
        event("sam/pass", device, 0, 10**9, launched_by=1),
    ])  # fmt: skip
    assert {phase: seconds for phase, seconds in found.items() if seconds} == pytest.approx(
        {"pass": 0.3, "norm": 0.2, "ascent": 0.1, "rest": 0.4}
    )


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))]


OPTIMIZERS = {
    "sgd": lambda: torch.optim.SGD(parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda: torch.optim.Adam(parameters(), lr=0.1, betas=(0.8, 0.9)),
    "adamw": lambda: torch.optim.AdamW(parameters(), weight_decay=0.3, foreach=True),
    "adagrad": lambda: torch.optim.Adagrad(parameters()),
    "rprop": lambda: torch.optim.Rprop(parameters()),
    "decoupled_sgdw": lambda: pytest.importorskip("composer.optim").DecoupledSGDW(parameters(), lr=0.1, momentum=0.9),
    "decoupled_adamw": lambda: pytest.importorskip("composer.optim").DecoupledAdamW(parameters(), lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_another_optimizer_like_one(name: str):
    base = OPTIMIZERS[name]()
    made = alike(base, parameters())
    assert type(made) is type(base) and made.defaults == base.defaults
    quick = fused(base)
    assert (quick is not None) == (name in ("sgd", "adam", "adamw", "adagrad"))
    if quick is not None:
        assert quick.defaults["fused"] and [g["lr"] for g in quick.param_groups] == [base.defaults["lr"]]
        assert quick.param_groups[0]["params"] == base.param_groups[0]["params"]
    found = contenders(base, mode="bare", essential=True)
    assert ("plain, fused=True" in found) == (quick is not None)


def test_a_method_that_is_not_known_here_is_measured_with_its_defaults(monkeypatch: pytest.MonkeyPatch):
    from sam_algos import METHODS, SAM

    class NewSAM(SAM):
        pass

    monkeypatch.setitem(METHODS, "newsam", NewSAM)
    new = contenders(OPTIMIZERS["sgd"](), mode="trainer", essential=True)["NewSAM()"]
    assert (new.line, new.package, new.essential) == ("NewSAM", "sam_algos", True)


def contender(reads_losses: bool) -> Contender:
    parts = SimpleNamespace(samples=SimpleNamespace(reads_losses=reads_losses))
    return Contender("x", "x", "sam_algos", lambda base, _: base, SimpleNamespace(composition=lambda: parts))


def test_closures_are_as_the_steps_want_them():
    model = nn.Linear(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.randn(8, 2), torch.zeros(8, dtype=torch.long)
    task = Task(model, optimizer, iter([batch]))
    closure = closure_for(contender(False), optimizer, task, model, batch)
    whole = closure()
    assert model.weight.grad is not None and closure(ddp_sync=False) == whole
    half = closure(lambda b: (b[0][:4], b[1][:4]))
    assert half == task.loss(model, (batch[0][:4], batch[1][:4]))
    optimizer.zero_grad()
    losses = closure_for(contender(True), optimizer, task, model, batch)(lambda b: b)
    assert losses.shape == (8,) and model.weight.grad is None and losses.mean().item() == pytest.approx(whole.item())


@pytest.mark.parametrize(
    ("name", "method"), [("SAM in fifteen lines", SAM()), ("Momentum-SAM in fifteen lines", MomentumSAM())], ids=str
)
def test_fifteen_lines_take_the_steps_of_the_method(name: str, method: Method):
    """In float64, so that the order of a sum does not show."""
    torch.manual_seed(0)
    start, batch = nn.Linear(4, 3).double(), (torch.randn(8, 4).double(), torch.arange(8) % 3)
    trained = []
    for by_hand in (True, False):
        model = copy.deepcopy(start)
        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        found = contenders(base, mode="bare", essential=True)[name]
        optimizer = found.wrap(base, model) if by_hand else method.wrap(base, model=model)
        for _ in range(4):
            optimizer.step(closure_for(found, optimizer, Task(model, base, iter([])), model, batch))
        trained.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(*trained, rtol=1e-12, atol=0.0)


def test_momentum_is_climbed_against_by_hand_only_where_there_is_any():
    plain = torch.optim.SGD(parameters(), lr=0.1)
    assert "Momentum-SAM in fifteen lines" not in contenders(plain, mode="bare", essential=True)


def test_a_seat_measures_what_a_step_spends_outside_its_passes(monkeypatch: pytest.MonkeyPatch):
    """A pass takes 10 seconds, what the step does besides takes 3."""
    now = [0.0]
    monkeypatch.setattr("time.process_time", lambda: now[0])

    def spend(seconds: float, value: torch.Tensor) -> torch.Tensor:
        now[0] += seconds
        return value

    def step(closure: Callable[[], Any]) -> None:
        closure()
        spend(3.0, closure())

    seat = Seat(SimpleNamespace(step=step))
    seat.step(lambda: spend(10.0, torch.zeros(())))
    assert seat.figures() == {"gradients": 2.0, "outside": 3.0}
    seat.step(lambda: spend(10.0, torch.zeros(8)))
    assert seat.figures() == {"gradients": 2.0}, "the step runs the backward passes of the samples' losses"


def test_gradients_are_those_that_the_optimizer_logs_or_its_calls_of_the_closure():
    logging = SimpleNamespace(step=lambda closure: closure(), metrics={"sam/gradients": 1.25})
    counting = SimpleNamespace(step=lambda closure: (closure(), closure()))
    for optimizer, expected in ((logging, 1.25), (counting, 2.0)):
        seat = Seat(optimizer)
        seat.step(lambda: 1.0)
        assert seat.figures()["gradients"] == expected


@pytest.mark.parametrize(
    ("name", "make", "size"),
    [
        ("resnet18", lambda: resnet((2, 2, 2, 2), classes=1000, small=False), 64),
        ("resnet50", lambda: resnet((3, 4, 6, 3), classes=1000, small=False, expansion=4), 64),
        ("vit_s16", lambda: VisionTransformer(classes=1000, image=224), 224),
    ],
)
def test_networks_are_those_of_torchvision(name: str, make: Callable[[], nn.Module], size: int):
    torchvision = pytest.importorskip("torchvision")
    vit = {"image_size": 224, "patch_size": 16, "num_layers": 12, "num_heads": 6, "hidden_dim": 384, "mlp_dim": 1536}
    models = torchvision.models
    theirs = models.VisionTransformer(**vit) if name == "vit_s16" else getattr(models, name)()
    ours = make()
    assert sorted(p.numel() for p in ours.parameters()) == sorted(p.numel() for p in theirs.parameters())
    with torch.no_grad():
        assert ours.eval()(torch.zeros(1, 3, size, size)).shape == (1, 1000)
