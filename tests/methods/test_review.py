"""Ways to train wrongly in silence that a second pair of eyes found in the step; each was reproduced first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sam_algos import AESAM, SAM, Friendly, GradientNorm, Method, Policy, SharpnessAware
from sam_algos.core.objective.view import Step
from sam_algos.core.parts import Decision, Parts
from tests.cases import make_batches


def step_and_watch(optimizer: torch.optim.Optimizer, model: nn.Module, watched: Tensor, x: Tensor) -> list[Tensor]:
    """The values of a parameter in each pass of a step."""
    seen: list[Tensor] = []

    def closure() -> Tensor:
        seen.append(watched.detach().clone())
        return model(x).square().mean(1)

    optimizer.step(closure)
    return seen


@pytest.mark.parametrize("where", ["buffer", "attribute", "frozen parameter"])
def test_a_weight_whose_memory_something_else_shares_is_displaced_in_the_second_pass(where: str) -> None:
    model = nn.Linear(4, 2)
    if where == "buffer":
        model.register_buffer("alias", model.weight.data)
    elif where == "attribute":
        model.holder = type("Holder", (nn.Module,), {})()
        model.holder.alias = model.weight.data
        model.register_buffer("alias", model.weight.data)
    else:
        model.alias = nn.Parameter(model.weight.data, requires_grad=False)
    trained = [model.weight, model.bias]
    optimizer = SAM(rho=0.5).wrap(torch.optim.SGD(trained, lr=0.1), model=model)
    for _ in range(3):
        clean, displaced = step_and_watch(optimizer, model, model.weight, torch.ones(3, 4))
        assert (displaced - clean).norm() > 0.3
        assert torch.equal(model.alias, model.weight)


@pytest.mark.parametrize("added", [True, False])
def test_a_layer_that_joins_training_late_climbs_with_the_rest(added: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    params = model[0].parameters() if added else model.parameters()
    model[1].requires_grad_(False)
    # Flat for the first steps and sharp from then on.
    method = AESAM(rho=0.5, lambda_1=-90.0, lambda_2=60.0)
    optimizer = method.wrap(torch.optim.SGD(params, lr=0.01), model=model, total_steps=8)
    moved = []
    for t, (x, _) in enumerate(make_batches(8)):
        if t == 2:
            model[1].requires_grad_(True)
            if added:
                optimizer.add_param_group({"params": model[1].parameters()})
        seen = step_and_watch(optimizer, model, model[1].weight, x)
        moved += [float((seen[1] - seen[0]).norm())] if len(seen) == 2 else []
    assert moved
    assert all(length > 0.05 for length in moved)


def test_gradients_of_another_optimizers_parameters_are_those_of_one_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    [(x, y)] = make_batches(1)
    nn.functional.mse_loss(model(x), y).backward()
    expected = model[1].weight.grad.clone()
    model.zero_grad()
    ours = SAM(rho=0.5).wrap(torch.optim.SGD(model[0].parameters(), lr=0.1), model=model)

    def closure() -> Tensor:
        ours.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    ours.step(closure)
    torch.testing.assert_close(model[1].weight.grad, expected)


def test_parameters_may_be_unfrozen_within_the_closure() -> None:
    """As the losses of adversarial training switch networks on and off."""
    model = nn.Linear(4, 2)
    optimizer = SAM(rho=0.5).wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
    model.requires_grad_(False)

    def closure() -> Tensor:
        model.requires_grad_(True)
        return model(torch.ones(3, 4)).square().mean(1)

    optimizer.step(closure)
    assert optimizer.metrics["sam/applied"] == 1


def test_backward_passes_of_before_are_refused_however_many_the_closure_runs() -> None:
    model = nn.Linear(4, 2)
    optimizer = SAM().wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
    (100 * model(torch.ones(3, 4)).square().mean()).backward()

    def closure() -> Tensor:
        for _ in range(2):
            loss = model(torch.ones(3, 4)).square().mean()
            loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="held gradients when"):
        optimizer.step(closure)


def test_a_backward_pass_between_steps_that_reaches_some_layers_only_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    optimizer = SAM().wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)

    def closure() -> Tensor:
        loss = model(torch.ones(3, 6)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    model[0](torch.ones(3, 6)).sum().backward()
    with pytest.raises(RuntimeError, match="held gradients when"):
        optimizer.step(closure)


def test_what_cannot_be_written_to_is_left_alone(tmp_path) -> None:
    """A file that is mapped for reading, expanded tensors, and those of inference mode."""
    np.save(tmp_path / "x.npy", np.ones((4, 4), dtype=np.float32))
    model = nn.Sequential(nn.Linear(4, 2))
    holder = type("Holder", (nn.Identity,), {})()
    with pytest.warns(UserWarning, match="not writable"):
        holder.mapped = torch.from_numpy(np.load(tmp_path / "x.npy", mmap_mode="r"))
    holder.register_buffer("wide", torch.ones(1, 4).expand(3, 4))
    with torch.inference_mode():
        holder.cached = torch.ones(3)
    model.append(holder)
    optimizer = SAM().wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
    optimizer.step(lambda: model(torch.ones(3, 4)).square().mean(1))
    assert optimizer.metrics["sam/applied"] == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_a_scripted_model_counts_one_pass() -> None:
    model = torch.jit.script(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)))
    optimizer = SAM().wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
    for count in (1, 2):
        optimizer.step(lambda: model(torch.randn(3, 4)).square().mean(1))
        assert dict(model.named_buffers())["1.num_batches_tracked"] == count


def test_a_closure_may_skip_a_batch_whose_loss_is_not_finite() -> None:
    model = nn.Linear(4, 2)
    optimizer = SAM().wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
    before = model.weight.clone()
    optimizer.step(lambda: torch.tensor(float("nan")))
    assert torch.equal(model.weight, before)
    with pytest.raises(TypeError, match=r"shape \(3, 2\)"):
        optimizer.step(lambda: model(torch.ones(3, 4)))


class LossesFirst(Policy):
    """Reads the loss of each sample before any gradient."""

    reads_losses = True

    def decide(self, step: Step) -> Decision:
        return Decision(bool(step.losses.mean() > 0))


def test_losses_may_be_read_before_the_gradient() -> None:
    from dataclasses import dataclass

    model = nn.Linear(4, 2)
    policy = dataclass(frozen=True, repr=False)(LossesFirst)()
    optimizer = SharpnessAware(policy=policy).wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
    optimizer.step(lambda: model(torch.ones(3, 4)).square().mean(1))
    assert optimizer.metrics["sam/applied"] == 1
    assert (optimizer.metrics["sam/gradients"], optimizer.metrics["sam/forwards"]) == (2, 1)


def test_parts_that_would_share_a_memory_are_refused() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True, repr=False)
    class Either(Policy):
        one: Policy = GradientNorm()  # noqa: RUF009
        other: Policy = GradientNorm(delta=0.5)  # noqa: RUF009

        def decide(self, step: Step) -> Decision:
            return self.one.decide(step)

    with pytest.raises(ValueError, match="two parts would remember a number under one name"):
        SharpnessAware(policy=Either())
    assert Parts(GradientNorm(), Friendly(), SharpnessAware().descent).conflict() is None


def test_a_closure_that_ignores_the_samples_is_refused() -> None:
    model = nn.Linear(4, 2)
    method: Method = SAM(ascent_fraction=0.5)
    optimizer = method.wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
    with pytest.raises(TypeError, match="did not use its argument"):
        optimizer.step(lambda samples: model(torch.ones(4, 4)).square().mean(1))
