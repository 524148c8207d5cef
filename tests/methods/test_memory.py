"""What a method keeps, and what a step needs at the most, counted in tensors."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sam_algos import (
    AESAM,
    ASAM,
    ESAM,
    GSAM,
    METHODS,
    SAM,
    SAMON,
    WSAM,
    FisherSAM,
    FriendlySAM,
    LateSAM,
    LookLayerSAM,
    LookSAM,
    Method,
    MomentumSAM,
    RandomSAM,
    StableSAM,
    VaSSO,
)
from tests.cases import Closure, each_method, make_batches, make_model, steps, wrap


@each_method
def test_tensors_kept_between_steps_are_those_declared(method: Method) -> None:
    """In the base optimizer's state of each parameter, beside its own; all else that is remembered are numbers."""
    model, plain_model = make_model("mlp"), make_model("mlp")
    optimizer, plain = wrap(method, model), wrap(None, plain_model)
    list(steps(model, optimizer, make_batches(6)))
    list(steps(plain_model, plain, make_batches(6)))
    for p, q in zip(model.parameters(), plain_model.parameters(), strict=True):
        assert optimizer.state[p].keys() - plain.state[q].keys() == set(method.composition().buffers())
        assert all(value.shape == p.shape for value in optimizer.state[p].values())
    memory = optimizer.method_state_dict()
    for axis, values in memory.items():
        if axis in method.composition()._fields:
            assert all(type(value) in (int, float) for value in values.values())
        else:
            assert type(values) is int


def test_only_methods_that_reuse_a_direction_or_average_gradients_keep_tensors() -> None:
    keeping = {name: cls().parts().buffers() for name, cls in METHODS.items() if cls().parts().buffers()}
    direction = ("looksam_direction",)
    averages = {"friendlysam": ("friendly_mean",), "vasso": ("vasso_direction",)}
    assert keeping == dict.fromkeys(("looksam", "looklayersam", "aelooksam"), direction) | averages


class Living(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, beyond those at its start: now, and at the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._meet((args, kwargs), made=False)
        out = func(*args, **(kwargs or {}))
        self._meet(out, made=True)
        return out

    def _meet(self, values: Any, *, made: bool) -> None:
        for tensor in tree_leaves(values):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
                self.now += storage.nbytes() * made
                self.most = max(self.most, self.now)

    def _forget(self, key: int, nbytes: int) -> None:
        self._known.remove(key)
        self.now -= nbytes


PEAKS: dict[str, tuple[Method, float]] = {
    "sam": (SAM(), 1),
    "sam, p=inf": (SAM(p=float("inf")), 1),
    "sam, flat": (SAM(interval=9), 0),
    "sam, steps=2": (SAM(steps=2), 2),
    "sam, steps=5": (SAM(steps=5), 2),
    "sam, second order": (SAM(second_order=True), 4),
    "sam, a narrow ascent": (SAM(ascent_fraction=0.5), 1),
    "asam": (ASAM(), 1),
    "asam, filter": (ASAM(scope="filter"), 1),
    "samon": (SAMON(), 0),
    "friendlysam": (FriendlySAM(), 2),
    "momentumsam": (MomentumSAM(), 1),
    "randomsam": (RandomSAM(), 1),
    "gsam": (GSAM(), 2),
    "wsam": (WSAM(), 2),
    "stablesam": (StableSAM(), 2),
    "vasso": (VaSSO(), 2),
    "fishersam": (FisherSAM(), 1),
    "latesam": (LateSAM(start=0.0), 1),
    "latesam, flat": (LateSAM(), 0),
    "esam": (ESAM(beta=1.0), 1),
    "aesam, sharp": (AESAM(lambda_1=-9.0, lambda_2=-9.0), 1),
    "aesam, flat": (AESAM(lambda_1=9.0, lambda_2=9.0), 0),
    "looksam, sharp": (LookSAM(k=1), 2),
    "looksam, flat": (LookSAM(k=9), 0),
    "looklayersam, sharp": (LookLayerSAM(k=1), 2),
}


@pytest.mark.parametrize("name", PEAKS)
def test_memory_of_a_step_beyond_a_plain_one(name: str) -> None:
    """In copies of the parameters."""
    method, copies = PEAKS[name]
    peaks = []
    for used in (None, method):
        layers = [layer for _ in range(3) for layer in (nn.Linear(300, 300, bias=False), nn.LayerNorm(300, bias=False))]
        model = nn.Sequential(*layers)
        optimizer = wrap(used, model)
        closure = Closure(model, optimizer, (torch.randn(2, 300), torch.randn(2, 300)))
        for _ in range(2):
            optimizer.step(closure)
        optimizer.zero_grad()
        with Living() as living:
            optimizer.step(closure)
        peaks.append(living.most)
        if used is not None:
            assert optimizer.metrics["sam/applied"] == ("flat" not in name)
    size = sum(p.nbytes for p in model.parameters())
    assert copies - 0.05 <= (peaks[1] - peaks[0]) / size <= copies + 0.05
