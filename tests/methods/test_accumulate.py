"""Microbatches that come one at a time: `accumulate` runs all but the last of a step."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sam_algos import AESAM, ESAM, SAM, LookSAM, Method, MomentumSAM
from tests.cases import each_kind, make_batches, make_model, model_of, same, snapshot, wrap

K = 3
BATCHES = make_batches(4 * K)


def microbatch(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = mse_loss(model(x), y) / K
    loss.backward()
    return loss.detach()


def all_at_once(optimizer: Any, model: nn.Module, end: str) -> list[float]:
    """The reference: a closure that loops over the step's microbatches."""
    losses = []
    for i in range(0, len(BATCHES), K):
        optimizer.zero_grad()
        closure = lambda i=i: sum([microbatch(model, *batch) for batch in BATCHES[i : i + K]])  # noqa: E731
        losses.append(float(getattr(optimizer, end)(closure)))
        if end == "backward":
            optimizer.step()
    return losses


def as_they_come(optimizer: Any, model: nn.Module, end: str, between: Callable[[], Any] = tuple) -> list[float]:
    losses = []
    for i, batch in enumerate(BATCHES):
        closure = partial(microbatch, model, *batch)
        if (i + 1) % K:
            optimizer.accumulate(closure)
            between()
            continue
        losses.append(float(getattr(optimizer, end)(closure)))
        if end == "backward":
            optimizer.step()
        optimizer.zero_grad()
    return losses


def on_whole_batches(method: Method) -> bool:
    parts = method.composition()
    return not parts.samples.selects and parts.reader("reads_losses") is None


@each_kind
@pytest.mark.parametrize("name", ["batchnorm", "dropout"])
def test_microbatches_that_come_one_at_a_time_train_as_one_closure_over_them(method: Method, name: str) -> None:
    """To the last bit, statistics of BatchNorm, masks and figures included."""
    if not on_whole_batches(method):
        pytest.skip("its passes run on some of the samples")
    ends = []
    for train, end in ((all_at_once, "step"), (as_they_come, "step"), (as_they_come, "backward")):
        model = make_model(name)
        optimizer: Any = wrap(method, model, total_steps=len(BATCHES) // K)
        torch.manual_seed(3)
        ends.append((train(optimizer, model, end), snapshot(model, optimizer), repr(optimizer.metrics)))
    for losses, state, metrics in ends[1:]:
        assert losses == ends[0][0] and metrics == ends[0][2]
        assert same(state, ends[0][1])


def test_equal_microbatches_train_as_their_union() -> None:
    model, other = make_model("mlp"), make_model("mlp")
    optimizer: Any = wrap(SAM(rho=0.5), model)
    expected: Any = wrap(SAM(rho=0.5), other)
    as_they_come(optimizer, model, "step")
    for i in range(0, len(BATCHES), K):
        x, y = (torch.cat(tensors) for tensors in zip(*BATCHES[i : i + K], strict=True))
        expected.step(lambda x=x, y=y: (expected.zero_grad(), loss := mse_loss(other(x), y), loss.backward())[1])
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_random_numbers_drawn_between_microbatches_change_no_mask() -> None:
    """As loading and augmenting the next one does."""

    class Masks(nn.Dropout):
        seen: list[Tensor]

        def forward(self, input: Tensor) -> Tensor:
            out = super().forward(torch.ones_like(input))
            seen.append((out > 0).float())
            return input * out

    seen: list[Tensor] = []
    model = make_model("dropout")
    model[3] = Masks(0.4)  # pyright: ignore[reportIndexIssue]
    optimizer: Any = wrap(SAM(rho=0.5), model)
    torch.manual_seed(3)
    as_they_come(optimizer, model, "step", between=lambda: torch.rand(7))
    for step in zip(*[iter(seen)] * (2 * K), strict=True):
        assert all(map(torch.equal, step[:K], step[K:]))
    assert not torch.equal(seen[0], seen[1])


def test_a_flat_step_and_one_pass_methods_keep_no_batches() -> None:
    for method in (SAM(interval=10**6), MomentumSAM()):
        model = make_model("mlp")
        optimizer: Any = wrap(method, model)
        as_they_come(optimizer, model, "step")
        optimizer.accumulate(closure := partial(microbatch, model, *BATCHES[0]))
        kept = weakref.ref(closure)
        del closure
        assert kept() is None


def test_nothing_is_kept_when_the_step_is_over() -> None:
    model = make_model("mlp")
    optimizer: Any = wrap(SAM(), model)
    as_they_come(optimizer, model, "backward")
    kept = []
    for batch in BATCHES[:K]:
        closure = partial(microbatch, model, *batch)
        kept.append(weakref.ref(closure))
        if len(kept) < K:
            optimizer.accumulate(closure)
    assert kept[0]() is not None
    optimizer.step(closure)
    del closure
    assert [found() for found in kept] == [None] * K


@pytest.mark.parametrize("zero", [lambda o: o.zero_grad(), lambda o: o.zero_grad(set_to_none=False)])
def test_zeroing_amid_a_step_begins_a_new_one(zero: Callable[[Any], Any]) -> None:
    model, other = make_model("batchnorm"), make_model("batchnorm")
    optimizer: Any = wrap(SAM(rho=0.5), model)
    optimizer.accumulate(partial(microbatch, model, *BATCHES[0]))
    zero(optimizer)
    other.load_state_dict(model.state_dict())
    as_they_come(optimizer, model, "step")
    expected: Any = wrap(SAM(rho=0.5), other)
    as_they_come(expected, other, "step")
    assert same(snapshot(model, optimizer), snapshot(other, expected))


def test_a_closure_that_zeroes_what_was_accumulated_is_refused() -> None:
    model = make_model("mlp")
    optimizer: Any = wrap(SAM(), model)
    before = snapshot(model, optimizer)
    zeroing = lambda batch: (model.zero_grad(), microbatch(model, *batch))[1]  # noqa: E731
    optimizer.accumulate(lambda: zeroing(BATCHES[0]))  # the first may
    for end in (optimizer.accumulate, optimizer.step):
        with pytest.raises(RuntimeError, match="closure zeroed the gradients of the step's earlier"):
            end(lambda: zeroing(BATCHES[1]))
        optimizer.zero_grad()
        optimizer.accumulate(lambda: zeroing(BATCHES[0]))
    assert same(snapshot(model, optimizer), before)


def test_gradients_changed_between_microbatches_are_refused() -> None:
    model = make_model("mlp")
    optimizer: Any = wrap(SAM(), model)
    optimizer.accumulate(partial(microbatch, model, *BATCHES[0]))
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    with pytest.raises(RuntimeError, match="earlier microbatches were changed"):
        optimizer.step(partial(microbatch, model, *BATCHES[1]))


@pytest.mark.parametrize("method", [ESAM(), SAM(ascent_fraction=0.5), SAM(m=2)], ids=str)
def test_methods_that_run_on_some_of_the_samples_are_refused(method: Method) -> None:
    model = make_model("mlp")
    with pytest.raises(ValueError, match="some of the samples"):
        wrap(method, model).accumulate(partial(microbatch, model, *BATCHES[0]))


@pytest.mark.parametrize("end", ["accumulate", "step"])
def test_the_losses_of_samples_are_refused(end: str) -> None:
    model = make_model("mlp")
    optimizer: Any = wrap(SAM(), model)
    optimizer.accumulate(partial(microbatch, model, *BATCHES[0]))
    with pytest.raises(TypeError, match="returned a vector"):
        getattr(optimizer, end)(lambda: model(BATCHES[1][0]).square().mean(1))


def test_an_exception_in_a_microbatch_ends_the_step() -> None:
    model = make_model("mlp")
    optimizer: Any = wrap(MomentumSAM(), model)
    as_they_come(optimizer, model, "step")
    before = snapshot(model, optimizer)
    optimizer.accumulate(partial(microbatch, model, *BATCHES[0]))
    with pytest.raises(ZeroDivisionError):
        optimizer.accumulate(lambda: 1 / 0)
    assert same(snapshot(model, optimizer), before)
    with pytest.raises(RuntimeError, match="held gradients when the step began"):
        optimizer.step(partial(microbatch, model, *BATCHES[1]))
    optimizer.zero_grad()
    optimizer.step(partial(microbatch, model, *BATCHES[1]))


def test_weights_stand_still_between_microbatches() -> None:
    """Also of a method whose first pass is at displaced weights."""
    model = make_model("mlp")
    optimizer: Any = wrap(MomentumSAM(rho=0.5), model)
    as_they_come(optimizer, model, "step")
    before = copy.deepcopy(model.state_dict())
    optimizer.accumulate(partial(microbatch, model, *BATCHES[0]))
    optimizer.accumulate(partial(microbatch, model, *BATCHES[1]))
    assert same(dict(model.state_dict()), dict(before))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
def test_a_copy_made_amid_a_step_is_at_its_beginning(clone: Callable[[Any], Any]) -> None:
    model = make_model("mlp")
    optimizer: Any = wrap(LookSAM(), model)
    optimizer.accumulate(partial(microbatch, model, *BATCHES[0]))
    other = clone(optimizer)
    assert not other._context.passes.begun and optimizer._context.passes.begun
    as_they_come(other, model_of(other), "step")


def test_time_between_microbatches_is_not_charged_to_the_method() -> None:
    """A method that is given an overhead must not pay for the loading of data."""
    model = make_model("mlp")
    optimizer: Any = wrap(AESAM(target_overhead=0.1), model)
    passes = optimizer._context.passes
    now = [0.0]
    passes.clock = lambda: now[0]

    def later() -> None:
        now[0] += 100.0

    def closure(*batch: Tensor) -> Tensor:
        now[0] += 1.0
        return microbatch(model, *batch)

    for i, batch in enumerate(BATCHES * 4):
        if (i + 1) % K:
            optimizer.accumulate(partial(closure, *batch))
            later()
        else:
            optimizer.step(partial(closure, *batch))
            optimizer.zero_grad()
    known = optimizer.method_state_dict()["seconds"]
    assert known["own"] and set(known["own"]) == {0.0}
    assert set(known["plain"]) == {203.0}


def test_gradients_left_from_before_the_first_microbatch_are_refused() -> None:
    model = make_model("mlp")
    optimizer: Any = wrap(SAM(), model)
    microbatch(model, *BATCHES[0])
    with pytest.raises(RuntimeError, match="held gradients when the step began"):
        optimizer.accumulate(partial(microbatch, model, *BATCHES[1]))
