"""Ways in which real models surprised this package once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sam_algos import AESAM, ASAM, SAM, LookLayerSAM, LookSAM, Method


class Sum(nn.Module):
    """Two vectors added up; views hand the same gradient tensor to both."""

    def __init__(self, add: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.linspace(0, 1, 6)), nn.Parameter(torch.linspace(1, 3, 6))
        self._add = add

    def forward(self, x: Tensor) -> Tensor:
        return self._add(self.a, self.b) * x


def train(method: Method, model: nn.Module, steps: int = 3, cls: type = torch.optim.SGD) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    optimizer = method.wrap(cls(model.parameters(), lr=0.1), model=model, total_steps=steps)
    for _ in range(steps):
        x = torch.randn(6, generator=generator)

        def closure(x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("method", [SAM(rho=0.5), ASAM(), LookSAM(rho=0.5, k=2)], ids=str)
def test_parameters_whose_gradients_are_one_tensor(method: Method) -> None:
    sharing = Sum(lambda a, b: (a.reshape(-1) + b.reshape(-1)).view(6))
    apart = Sum(lambda a, b: a.clone() + b.clone() * 1.0)
    sharing(torch.ones(6)).sum().backward()
    assert sharing.a.grad.data_ptr() == sharing.b.grad.data_ptr()
    sharing.zero_grad()
    for one, other in zip(train(method, sharing), train(method, apart), strict=True):
        torch.testing.assert_close(one, other)


def test_adadelta_keeps_its_own_rho() -> None:
    seen = []
    model = Sum(lambda a, b: seen.append((a.detach().clone(), b.detach().clone())) or a + b)
    train(SAM(rho=0.05), model, steps=1, cls=torch.optim.Adadelta)
    (a, b), (perturbed_a, perturbed_b) = seen
    length = torch.cat([perturbed_a - a, perturbed_b - b]).norm()
    torch.testing.assert_close(length, torch.tensor(0.05), rtol=1e-4, atol=0)


def test_a_batchnorm_with_a_forward_of_its_own_counts_once() -> None:
    class Own(nn.BatchNorm1d):
        def forward(self, input: Tensor) -> Tensor:
            self.running_mean.mul_(0.5).add_(input.mean(0).detach(), alpha=0.5)
            return (input - input.mean(0)) * self.weight + self.bias

    means = []
    for method in (SAM(rho=0.5), AESAM(lambda_1=1e6, lambda_2=1e6)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4), Own(4))
        optimizer = method.wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model, total_steps=1)
        x = torch.randn(8, 6)

        def closure(model: nn.Module = model, x: Tensor = x) -> Tensor:
            model.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        means.append(model[1].running_mean.clone())
    assert torch.equal(*means)


def test_a_gradient_whose_square_overflows_is_flat_and_forgotten() -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    optimizer = AESAM().wrap(torch.optim.SGD(model.parameters(), lr=0.0), model=model, total_steps=2)
    before = optimizer.method_state_dict()["policy"]
    for size in (1e160, 1e100):  # its square, and the square of that

        def closure(size: float = size) -> Tensor:
            optimizer.zero_grad()
            loss = model(torch.full((1, 1), size, dtype=torch.float64)).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert optimizer.metrics["sam/applied"] == 0.0
    assert optimizer.method_state_dict()["policy"] == before


@pytest.mark.parametrize("method", [SAM(), SAM(p=3.0), SAM(p=1.0), LookLayerSAM()], ids=str)
@pytest.mark.parametrize("elements", [10, 10_000])
@pytest.mark.parametrize("size", [0.0, 1e-5])
def test_half_precision_weights_with_vanishing_gradients_stay_finite(
    method: Method, elements: int, size: float
) -> None:
    model = nn.Module()
    model.w = nn.Parameter(torch.ones(elements, dtype=torch.float16))
    seen = []
    optimizer = method.wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)

    def closure() -> float:
        seen.append(model.w.detach().clone())
        model.w.grad = torch.full_like(model.w, size)
        return 1.0

    optimizer.step(closure)
    assert torch.isfinite(seen[1]).all()


def test_a_lazily_conjugated_gradient() -> None:
    model = nn.Module()
    model.w = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    optimizer = SAM(rho=0.1).wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
    factor = torch.tensor([1j, 2.0, 1 + 1j])
    optimizer.step(lambda: (model.zero_grad(), (model.w.conj() * factor).real.sum().backward(), 1.0)[2])
    torch.testing.assert_close(model.w.detach(), 1 - 0.1 * factor)


def test_parameters_over_one_memory_are_displaced_by_both() -> None:
    model = nn.Module()
    model.a = nn.Parameter(torch.zeros(4))
    model.b = nn.Parameter(model.a.data)
    optimizer = SAM(rho=1.0).wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
    seen = []

    def closure() -> float:
        seen.append(model.a.detach().clone())
        model.a.grad, model.b.grad = torch.full((4,), 0.3), torch.full((4,), 0.4)
        return 1.0

    optimizer.step(closure)
    torch.testing.assert_close(seen[1], torch.full((4,), 0.7))  # ρ (0.3 + 0.4) / ‖(0.3, … 0.4, …)‖, and that norm is 1


def test_the_logged_norm_is_that_before_clipping() -> None:
    model = nn.Linear(4, 1)
    optimizer = SAM(interval=2).wrap(torch.optim.SGD(model.parameters(), lr=0.0), model=model)
    optimizer._context.passes.finish = lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    x, norms = torch.ones(1, 4), []
    for _ in range(2):

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = model(x).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        norms.append(optimizer.metrics["sam/grad_norm"])
    assert norms == pytest.approx([5**0.5, 5**0.5])


def test_what_acts_on_the_final_gradient_may_use_autograd() -> None:
    model, enabled = nn.Linear(2, 1), []
    optimizer = SAM().wrap(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
    optimizer._context.passes.finish = lambda: enabled.append(torch.is_grad_enabled())
    optimizer.step(lambda: (model.zero_grad(), model(torch.ones(1, 2)).sum().backward(), 1.0)[2])
    assert enabled == [True]


@pytest.mark.parametrize("arguments", [{"optimizer": None}, {"model": None}], ids=str)
def test_wrap_names_what_is_not_an_optimizer_or_a_model(arguments: dict[str, None]) -> None:
    model = nn.Linear(2, 1)
    given = {"optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "model": model, **arguments}
    with pytest.raises(ValueError, match=rf"SAM.wrap\({next(iter(arguments))}=None\)"):
        SAM().wrap(**given)


@pytest.mark.parametrize("size", [1e-15, 1e-19, 1e-21, 1e-24, 1e-38])
@pytest.mark.parametrize(
    ("method", "p"), [(SAM(rho=0.5), 2), (SAM(rho=0.5, p=3.0), 3), (ASAM(rho=0.5), 2)], ids=["sam", "sam, p=3", "asam"]
)
def test_a_vanishing_gradient_does_not_throw_the_weights_away(method: Method, p: float, size: float) -> None:
    """Its squares underflow in float32, and so may its norm: the perturbation is never longer than its radius."""
    model = nn.Linear(30, 30, bias=False)
    nn.init.ones_(model.weight)
    optimizer = method.wrap(torch.optim.SGD(model.parameters(), lr=0.0), model=model)
    seen = []

    def closure() -> float:
        seen.append(model.weight.detach().clone())
        model.weight.grad = torch.full((30, 30), size)
        return 1.0

    optimizer.step(closure)
    assert float(torch.linalg.vector_norm(seen[1] - seen[0], p)) <= 0.5 * 1.01 * 1.01  # ASAM's ball is scaled by 1 + η
