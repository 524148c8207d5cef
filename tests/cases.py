"""What the tests train: models, batches, base optimizers and closures; and how two runs are compared."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from sam_algos import (
    AESAM,
    ASAM,
    METHODS,
    SAM,
    SSSAM,
    Adaptive,
    AELookSAM,
    Cosine,
    GradientNorm,
    LateSAM,
    Method,
    NormLayers,
    Reuse,
    SharpnessAware,
    SharpnessAwareOptimizer,
)
from sam_algos.core.passes.selection import EVERYTHING, Selection

Batch = tuple[Tensor, Tensor]

VARIANTS: dict[str, Method] = {
    "sam, p=1": SAM(p=1.0),
    "sam, p=inf": SAM(p=math.inf, interval=2),
    "asam, layer": ASAM(scope="layer", normalize_bias=True),
    "asam, filter": ASAM(scope="filter"),
    "sam, two ascent steps": SAM(steps=2),
    "asam, a falling radius": ASAM(rho=Cosine(0.5, 0.1)),
    "aesam, adaptive": AESAM(perturbation=Adaptive(0.3)),
    "sam, second order": SAM(second_order=True),
    "sssam, fewer and fewer": SSSAM(schedule="trigonometric", start=1.0, end=0.3),
    "aesam, target fraction": AESAM(target_fraction=0.4),
    "aelooksam, target fraction": AELookSAM(target_fraction=0.3, delta=0.5),
    "composed": SharpnessAware(GradientNorm(lambda_1=-0.5, lambda_2=0.5), Adaptive(), Reuse()),
}

# Every registered method with its defaults: a new one is tested without an edit here. First steps are looked at.
_WHOLE = {name: cls() for name, cls in METHODS.items()} | VARIANTS | {"latesam": LateSAM(start=0.0)}
CASES = _WHOLE | {"sam, a narrow ascent": SAM(ascent_fraction=0.5)}


def kind(method: Method) -> tuple:
    """What the step does differently for a method: which passes it runs, and what its parts read and remember."""
    parts = method.composition()
    needs = ("reads_gradient", "reads_progress", "reads_losses", "reads_seconds")
    declared = []
    for part in parts:
        inner = list(part.tree())
        reads = tuple(need for need in needs if any(getattr(each, need) for each in inner))
        declared.append((reads, any(each.buffers for each in inner), any(each.initial() for each in inner)))
    return parts.perturbation.own_pass, parts.samples.selects, *declared


_OF_KIND = {kind(method): name for name, method in [*reversed(CASES.items()), ("sam", CASES["sam"])]}
# Beside one of each kind, those whose parts run passes of their own.
_KINDS = {*_OF_KIND.values(), "sam, two ascent steps", "sam, second order"}
# How the weights are displaced: along a gradient that is used up, one that is kept, a new vector, the optimizer's
# momentum (in the only pass); twice; with some tensors left out and a forward pass between; again for the Hessian.
_ASCENTS = ("sam", "looksam", "asam", "momentumsam", "sam, two ascent steps", "esam", "sam, second order")
# What a method keeps lies in the base optimizer's state, or is read from it: there the base optimizer matters.
_ON_OTHER_BASES = ("sam", "looksam", "friendlysam", "momentumsam")


def _each(*names: str, cases: dict[str, Method] = CASES) -> pytest.MarkDecorator:
    chosen = {name: method for name, method in cases.items() if not names or name in names}
    return pytest.mark.parametrize("method", chosen.values(), ids=chosen)


def _for_any_model(cases: dict[str, Method]) -> dict[str, Method]:
    """Without the methods that need a normalisation layer."""
    return {name: m for name, m in cases.items() if type(m.composition().perturbation) is not NormLayers}


each_method = _each()
each_method_for_any_model = _each(cases=_for_any_model(CASES))
each_kind = _each(*_KINDS)
each_kind_on_the_whole_batch = _each(*_KINDS, cases=_WHOLE)
each_ascent = _each(*_ASCENTS)


def _and_base(cases: Iterable[str]) -> pytest.MarkDecorator:
    chosen = [(name, "momentum") for name in cases]
    chosen += [(name, base) for name in _ON_OTHER_BASES for base in ("sgd", "adamw")]
    return pytest.mark.parametrize(
        ("method", "base"), [pytest.param(CASES[name], base, id=f"{name}, {base}") for name, base in chosen]
    )


each_method_and_base = _and_base(CASES)
each_kind_and_base = _and_base(sorted(_KINDS))

MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)),
    "batchnorm": lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Dropout(0.4), nn.Linear(16, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)),
        nn.Conv1d(1, 4, 3),
        nn.BatchNorm1d(4),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    ),
}

BASES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.05),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01, weight_decay=0.05),
}


def make_model(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS[name]().to(dtype)


def make_batches(steps: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> list[Batch]:
    """Batches whose gradients differ in size, so that an adaptive policy has something to decide."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return [(draw(7, 6).to(dtype), (draw(7, 3) * (1 + 2 * draw(1).abs())).to(dtype)) for _ in range(steps)]


def squared_errors(out: Tensor, y: Tensor) -> Tensor:
    """The loss of each sample; their mean is ``mse_loss``."""
    return (out - y).square().flatten(1).mean(1)


class Closure:
    """A closure as a user writes it, which counts its calls; subclasses make some of them go wrong.

    For methods that read the loss of each sample it returns these, and for all others their mean after a backward
    pass. ``loss`` gives the loss of each sample, in dimensions of its own choice.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        *,
        set_to_none: bool = True,
        loss: Callable[[Tensor, Tensor], Tensor] = squared_errors,
    ) -> None:
        self.model, self.optimizer, self.batch = model, optimizer, batch
        self.set_to_none, self.loss = set_to_none, loss
        self.calls = 0

    def __call__(self, samples: Selection = EVERYTHING) -> Any:
        self.calls += 1
        if reads_losses(self.optimizer):
            return self.losses(samples)
        self.optimizer.zero_grad(set_to_none=self.set_to_none)
        loss = self.losses(samples).mean()
        loss.backward()
        return loss

    def losses(self, samples: Selection = EVERYTHING) -> Tensor:
        x, y = samples(self.batch)
        return self.loss(self.model(x), y).reshape(len(x), -1).mean(1)


def reads_losses(optimizer: torch.optim.Optimizer) -> bool:
    return isinstance(optimizer, SharpnessAwareOptimizer) and optimizer._context.needs.losses


def wrap(
    method: Method | None, model: nn.Module, base: str = "momentum", total_steps: int = 40, **group: Any
) -> torch.optim.Optimizer:
    """The method's optimizer around a base optimizer, or the base optimizer alone.

    A method that needs momentum gets plain SGD with momentum.
    """
    groups = {"params": list(model.parameters()), **group}
    optimizer = BASES[base]([groups.copy()])
    if method is None:
        return optimizer
    if base == "sgd" and not takes(method, optimizer):
        optimizer = BASES["momentum"]([groups])
    return method.wrap(optimizer, model=model, total_steps=total_steps)


def model_of(optimizer: Any) -> nn.Module:
    """The model that an optimizer's closures run; of a copy its copy."""
    return optimizer._context.passes.model()


def second_pass(optimizer: torch.optim.Optimizer) -> int:
    """The number of the pass that is the first at displaced weights, after the first step; it may be the only one."""
    return 1 if optimizer._context.needs.one_pass else 2


def takes(method: Method, optimizer: torch.optim.Optimizer) -> bool:
    """Whether the method's parts can work with the base optimizer."""
    try:
        for part in method.composition().all():
            part.check(optimizer)
    except ValueError:
        return False
    return True


class Seen(NamedTuple):
    """What one forward pass saw: the weights, how many samples, and whether a gradient was wanted."""

    weights: Tensor
    samples: int
    gradient: bool


def watch(model: nn.Module) -> list[Seen]:
    """A list to which every forward pass of a model adds what it saw."""
    seen: list[Seen] = []

    def note(module: nn.Module, args: Any) -> None:
        weights = nn.utils.parameters_to_vector(module.parameters()).detach()
        seen.append(Seen(weights, len(args[0]), torch.is_grad_enabled()))

    model.register_forward_pre_hook(note)
    return seen


class Notes:
    """Keeps notes where the repetition of a pass does not put them back, as it does a module's own lists."""

    def __init__(self) -> None:
        self.taken: list[Any] = []


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[Batch]) -> Iterator[int]:
    """Train, and yield after each step how many passes it took."""
    for batch in batches:
        closure = Closure(model, optimizer, batch)
        optimizer.step(closure)
        yield closure.calls


def train(
    method: Method | None, model: nn.Module, batches: Sequence[Batch], base: str = "momentum"
) -> torch.optim.Optimizer:
    """Train a model to the end of the batches; a method with a schedule reaches its end with them."""
    optimizer = wrap(method, model, base, total_steps=len(batches))
    torch.manual_seed(2)
    for _ in steps(model, optimizer, batches):
        pass
    return optimizer


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, buffers: bool = True) -> Any:
    """A copy of all that training changes: the model, the optimizer state and what the method remembers."""
    model_state = dict(model.named_parameters()) | (dict(model.named_buffers()) if buffers else {})
    state = {"model": model_state, "optimizer": None, "method": None}
    if optimizer is not None:
        state["optimizer"] = optimizer.state_dict()
    if isinstance(optimizer, SharpnessAwareOptimizer):
        state["method"] = optimizer.method_state_dict()
    return copy.deepcopy(state)


def same(a: Any, b: Any) -> bool:
    """Whether two nested structures are equal, tensors to the last bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def distance(a: nn.Module, b: nn.Module) -> float:
    """The largest difference between the parameters and buffers of two models."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((x.double() - y.double()).abs().max()) for x, y in pairs if x.numel())


def refused(optimizer: Any, closure: Any, error: Any, match: str) -> None:
    """The step is refused, and leaves weights, state and memory as they were."""
    model = model_of(optimizer)
    before = snapshot(model, optimizer)
    with pytest.raises(error, match=match):
        optimizer.step(closure)
    assert same(snapshot(model, optimizer), before)
