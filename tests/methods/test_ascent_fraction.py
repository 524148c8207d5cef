"""An ascent on a share of the batch: the first pass of a sharp step sees its first samples, all else is as without."""

from __future__ import annotations

import math
from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_algos import AESAM, ASAM, SAM, SSSAM, AELookSAM, GradientNorm, LookSAM, Reuse, SharpnessAware
from sam_algos.core.passes.selection import First, Selection
from tests.cases import Closure, make_batches, make_model, same, snapshot, steps, wrap

SHARES = {1.0: 7, 0.5: 4, 0.25: 2}  # of the 7 samples of each batch


class Seen(Closure):
    """Notes how many samples each pass was asked for."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: list[int] = []

    def __call__(self, samples: Selection) -> Any:
        self.asked.append(len(samples(self.batch[0])))
        return super().__call__(samples)


@pytest.mark.parametrize("share", SHARES)
def test_a_step_climbs_by_the_gradient_of_the_first_samples_and_descends_by_that_of_all(share: float) -> None:
    """Against the equation, in float64 and by hand."""
    model, optimizer_of = make_model("mlp", torch.float64), lambda m: torch.optim.SGD(m.parameters(), lr=0.05)
    [(x, y)] = make_batches(1, torch.float64)
    params = list(model.parameters())
    few = torch.autograd.grad(nn.functional.mse_loss(model(x[: SHARES[share]]), y[: SHARES[share]]), params)
    norm = math.sqrt(sum(float(g.square().sum()) for g in few))
    climbed = {name: p + 0.1 * g / norm for (name, p), g in zip(model.named_parameters(), few, strict=True)}
    at_climbed = torch.func.functional_call(model, climbed, (x,))
    sharp = torch.autograd.grad(nn.functional.mse_loss(at_climbed, y), list(climbed.values()))
    expected = [p - 0.05 * g for p, g in zip(params, sharp, strict=True)]
    optimizer = SAM(rho=0.1, ascent_fraction=share).wrap(optimizer_of(model), model=model)
    optimizer.step(Closure(model, optimizer, (x, y)))
    assert optimizer.metrics["sam/grad_norm"] == pytest.approx(norm, rel=1e-12)
    for p, value in zip(params, expected, strict=True):
        assert torch.allclose(p, value, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("without_looks")
@pytest.mark.parametrize("method", [SAM(ascent_fraction=0.5, interval=2), ASAM(ascent_fraction=0.5)], ids=str)
def test_only_the_first_pass_of_a_sharp_step_sees_a_share(method: SAM | ASAM) -> None:
    model = make_model("mlp")
    optimizer = wrap(method, model)
    for batch in make_batches(4):
        closure = Seen(model, optimizer, batch)
        optimizer.step(closure)
        assert closure.asked == ([4, 7] if optimizer.metrics["sam/applied"] else [7])


def test_a_pass_on_the_whole_batch_passes_no_selection() -> None:
    model = make_model("mlp")
    optimizer = wrap(SAM(ascent_fraction=1.0), model)
    [(x, y)] = make_batches(1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    assert math.isfinite(optimizer.step(closure).item())


def test_the_random_streams_end_where_a_plain_step_leaves_them() -> None:
    ends = []
    for method in (None, SAM(ascent_fraction=0.5), SSSAM(probability=0.5, ascent_fraction=0.3)):
        model = make_model("dropout")
        torch.manual_seed(5)
        list(steps(model, wrap(method, model), make_batches(4)))
        ends.append(torch.get_rng_state())
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


def test_batch_norm_counts_the_pass_at_the_clean_weights() -> None:
    model, few = make_model("batchnorm"), make_model("batchnorm")
    [(x, y)] = make_batches(1)
    few(x[:4])
    optimizer = wrap(SAM(rho=5.0, ascent_fraction=0.5), model)
    optimizer.step(Closure(model, optimizer, (x, y)))
    assert same(dict(model.named_buffers()), dict(few.named_buffers()))


@pytest.mark.parametrize("method", [AESAM, AELookSAM, LookSAM])
def test_methods_that_need_the_gradient_of_all_refuse_a_share(method: type) -> None:
    reader = "Reuse" if method is LookSAM else "GradientNorm"
    with pytest.raises(ValueError, match=rf"{method.__name__}\(ascent_fraction=0.5\).* must be 1 with {reader}"):
        method(ascent_fraction=0.5)
    assert method(ascent_fraction=1.0) == method()


def test_combinations_refuse_a_share_where_a_part_needs_the_gradient_of_all() -> None:
    with pytest.raises(ValueError, match="must be 1 with GradientNorm"):
        SharpnessAware(policy=GradientNorm(), ascent_fraction=0.5)
    with pytest.raises(ValueError, match="must be 1 with Reuse"):
        SharpnessAware(descent=Reuse(), ascent_fraction=0.5)
    assert SharpnessAware(ascent_fraction=0.5).ascent_fraction == 0.5


@pytest.mark.parametrize("value", [0, 0.0, -0.5, 1.5, float("nan"), "0.5", True, None])
def test_a_share_is_a_number_in_its_range(value: Any) -> None:
    with pytest.raises(ValueError, match=r"ascent_fraction must be a number in \(0, 1\]"):
        SAM(ascent_fraction=value)


def test_a_closure_that_cannot_run_on_a_share_is_told_how() -> None:
    model = make_model("mlp")
    optimizer = wrap(SAM(ascent_fraction=0.5), model)
    before = snapshot(model, optimizer)
    with pytest.raises(TypeError, match=r"write def closure\(samples\): inputs, labels = samples\(\(x, y\)\)"):
        optimizer.step(lambda: 1 / 0)
    assert same(snapshot(model, optimizer), before)


def test_an_error_in_the_second_pass_leaves_the_streams_where_the_first_ended() -> None:
    model = make_model("dropout")
    optimizer = wrap(SAM(ascent_fraction=0.5), model)
    [batch] = make_batches(1)
    ends: list[Tensor] = []

    class Failing(Closure):
        def __call__(self, samples: Selection) -> Any:
            loss = super().__call__(samples)
            ends.append(torch.get_rng_state())
            if self.calls == 2:
                raise ZeroDivisionError
            return loss

    with pytest.raises(ZeroDivisionError):
        optimizer.step(Failing(model, optimizer, batch))
    assert torch.equal(torch.get_rng_state(), ends[0])


def test_a_closure_may_take_the_fraction_and_cut_the_batch_itself() -> None:
    """As closures did before there was a choice of samples."""
    models = [make_model("batchnorm") for _ in range(2)]
    for model, by_fraction in zip(models, (True, False), strict=True):
        optimizer = wrap(SAM(ascent_fraction=0.5, interval=2), model)
        for x, y in make_batches(4):
            closure = Closure(model, optimizer, (x, y))

            def cut(
                fraction: float = 1.0, model: nn.Module = model, closure: Any = closure, x: Tensor = x, y: Tensor = y
            ) -> Tensor:
                closure.batch = tuple(values[: math.ceil(fraction * len(values))] for values in (x, y))
                return closure()

            optimizer.step(cut if by_fraction else closure)
    assert same(*map(snapshot, models))


def test_another_type_error_in_the_closure_stays_what_it_is() -> None:
    model = make_model("mlp")
    optimizer = wrap(SAM(ascent_fraction=0.5), model)

    def closure(samples: Selection) -> Any:
        raise TypeError("labels must be integers")

    with pytest.raises(TypeError, match=r"^labels must be integers$"):
        optimizer.step(closure)


Pair = namedtuple("Pair", "x y")
X, Y = torch.arange(12.0).view(6, 2), torch.arange(6)

BATCHES: dict[str, tuple[Any, Any]] = {
    "tensor": (X, X[:3]),
    "tuple": ((X, Y), (X[:3], Y[:3])),
    "list": ([X, Y], [X[:3], Y[:3]]),
    "named tuple": (Pair(X, Y), Pair(X[:3], Y[:3])),
    "mapping": ({"x": X, "y": Y}, {"x": X[:3], "y": Y[:3]}),
    "nested": ({"in": (X, {"mask": Y}), "y": Y}, {"in": (X[:3], {"mask": Y[:3]}), "y": Y[:3]}),
    "values for all": ({"x": X, "scale": 2.0, "t": torch.ones(())}, {"x": X[:3], "scale": 2.0, "t": torch.ones(())}),
    "values for each": ((X, ["a", "b", "c", "d", "e", "f"]), (X[:3], ["a", "b", "c"])),
    "as many tensors as samples": ((X[:3], Y[:3], X[:3]), (X[:2], Y[:2], X[:2])),
}  # fmt: skip


@pytest.mark.parametrize("name", BATCHES)
def test_first_samples_keep_the_structure(name: str) -> None:
    batch, expected = BATCHES[name]
    found = First(0.5)(batch)
    assert type(found) is type(expected)
    assert same(found, expected)


def test_first_samples_are_views() -> None:
    assert First(0.5)((X, Y))[0].data_ptr() == X.data_ptr()


@pytest.mark.parametrize(
    ("share", "count"), [(1.0, 100), (0.5, 50), (0.07, 7), (0.29, 29), (1 / 3, 34), (1e-9, 2), (0.999, 100)]
)
def test_shares_are_rounded_up_to_whole_samples(share: float, count: int) -> None:
    """And not by what a float has too much: ``0.07 * 100`` is more than 7. BatchNorm needs two."""
    assert len(First(share)(torch.zeros(100))) == count


@pytest.mark.parametrize(("size", "count"), [(1, 1), (2, 2), (3, 2), (0, 0)])
def test_a_small_batch_keeps_two_samples_where_it_has_two(size: int, count: int) -> None:
    assert len(First(0.25)(torch.zeros(size))) == count


def test_a_tokenizers_batch_keeps_its_type() -> None:
    found = First(0.5)(UserDict(x=X, y=Y))
    assert isinstance(found, UserDict)
    assert same(dict(found), {"x": X[:3], "y": Y[:3]})


@pytest.mark.parametrize(
    ("batch", "found"),
    [((X, torch.zeros(4, 2)), "4 and 6 samples"), (["a"], "no tensor"), (torch.tensor(1.0), "no tensor"), (None, "no")],
)
def test_what_has_no_samples_cannot_be_shared(batch: Any, found: str) -> None:
    with pytest.raises(ValueError, match=f"ascent_fraction < 1 need batches .*{found}"):
        First(0.5)(batch)
