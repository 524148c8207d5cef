"""PyTorch Lightning: the page's snippets, and what the mixin makes right or refuses."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sam_algos import AESAM, ESAM, SAM, LateSAM, LookSAM, Method, MomentumSAM
from sam_algos.integrations.lightning import SharpnessAwareMixin
from tests.cases import same
from tests.integrations.page import METHOD, grouped, loader, network, run, sgd, trained

L: Any = pytest.importorskip("lightning", reason="needs lightning: pip install 'sam_algos[frameworks]'")
torchmetrics: Any = pytest.importorskip("torchmetrics")

pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return {"accelerator": "cpu", "max_epochs": 1, "default_root_dir": tmp_path, **quiet}


class Net(SharpnessAwareMixin, L.LightningModule):
    """Logs, counts and keeps what one does in training steps, and notes what each pass and each hook saw."""

    def __init__(self, method: Method = METHOD) -> None:
        super().__init__()
        self.method = method
        self.network = network()
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.outputs: list[float] = []
        self.losses: list[float] = []
        self.ends: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        out = self.network(x)
        loss = cross_entropy(out, y)
        self.accuracy(out, y)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        self.log("loss", loss, on_step=False, on_epoch=True)
        self.outputs.append(float(loss))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ends.append(float(outputs["loss"]))

    def configure_optimizers(self) -> Any:
        return sgd(self)


def fit(net: Any, options: dict[str, Any], **fit: Any) -> Any:
    trainer = L.Trainer(**options)
    torch.manual_seed(2)
    trainer.fit(net, loader(), **fit)
    return trainer


def test_the_snippet_of_automatic_optimization(options: dict[str, Any]) -> None:
    names = run("Lightning, automatic optimization", network=network, data=loader(), options=options)
    net: Any = names["Net"]()
    torch.manual_seed(2)
    L.Trainer(**options).fit(net, loader())
    assert same(dict(net.network.state_dict()), dict(trained(grouped(loader()), total_steps=8)))


def test_the_snippet_of_manual_optimization(options: dict[str, Any]) -> None:
    names = run("Lightning, manual optimization", L=L, network=network, data=loader(), options=options)
    net: Any = names["Net"]()
    torch.manual_seed(2)
    L.Trainer(**options).fit(net, loader())
    assert same(dict(net.network.state_dict()), dict(trained(grouped(loader()), clip=1.0)))


@pytest.mark.parametrize("method", [METHOD, LookSAM(rho=0.1, k=2)], ids=str)
def test_clipping_acts_on_the_gradient_that_the_optimizer_gets_and_on_no_decision(
    options: dict[str, Any], method: Method
) -> None:
    net = Net(method)
    fit(net, {**options, "gradient_clip_val": 0.05})
    expected = trained(grouped(loader()), method=method, clip=0.05, total_steps=8)
    assert same(dict(net.network.state_dict()), dict(expected))


def test_a_step_counts_one_pass_and_logs_it(options: dict[str, Any]) -> None:
    net = Net(SAM(rho=0.5))
    trainer = fit(net, options)
    assert len(net.outputs) == len(loader())  # the second pass's entry was taken back
    assert net.ends == net.outputs
    figures = trainer.callback_metrics
    assert float(figures["loss"]) == pytest.approx(sum(net.outputs) / len(net.outputs))
    assert float(figures["sam/gradients"]) == 2.0
    assert int(net.network[1].num_batches_tracked) == len(loader())


@pytest.mark.parametrize("k", [1, 2])
def test_fp16_scales_and_unscales_around_it(options: dict[str, Any], k: int) -> None:
    """The arithmetic stays in float32: the scale is a power of two, and every number that of training without it."""
    from lightning.pytorch.plugins import MixedPrecision

    class Scaled(MixedPrecision):
        def autocast_context_manager(self) -> Any:
            return torch.autocast("cpu", enabled=False)

    scaler = torch.amp.GradScaler("cpu")
    net = Net()
    plugin = Scaled("16-mixed", "cpu", scaler)
    trainer = fit(net, {**options, "gradient_clip_val": 0.05, "plugins": [plugin], "accumulate_grad_batches": k})
    assert scaler.get_scale() == 2.0**16
    assert trainer.callback_metrics["sam/grad_norm"] < 100.0  # without the scale
    expected = trained(grouped(loader(), k), clip=0.05, total_steps=8 // k)
    assert same(dict(net.network.state_dict()), dict(expected))


def test_bf16(options: dict[str, Any]) -> None:
    net = Net()
    trainer = fit(net, {**options, "precision": "bf16-mixed"})
    assert trainer.callback_metrics["sam/fraction"] > 0


def test_a_resumed_run_is_the_uninterrupted_one(options: dict[str, Any], tmp_path: Path) -> None:
    whole, first, second = Net(LookSAM(k=3)), Net(LookSAM(k=3)), Net(LookSAM(k=3))
    for net in (whole, first, second):
        net.network[3].p = 0.0  # Lightning does not save random streams
    fit(whole, {**options, "max_epochs": 2})
    fit(second, {**options, "max_epochs": 2}, ckpt_path=checkpoint(tmp_path, first, options))
    assert same(dict(second.network.state_dict()), dict(whole.network.state_dict()))
    assert second._sharpness_aware.method_state_dict() == whole._sharpness_aware.method_state_dict()


def checkpoint(folder: Path, net: Any, options: dict[str, Any]) -> str:
    """Of one epoch."""
    fit(net, options).save_checkpoint(path := str(folder / "one.ckpt"))
    return path


def test_a_finished_run_that_is_resumed_and_saved_keeps_what_the_method_remembered(
    options: dict[str, Any], tmp_path: Path
) -> None:
    path = checkpoint(tmp_path, Net(LookSAM(k=3)), options)
    trainer = fit(Net(LookSAM(k=3)), options, ckpt_path=path)
    trainer.save_checkpoint(again := tmp_path / "again.ckpt")
    first, second = (torch.load(file, weights_only=False)["sharpness_aware"] for file in (path, again))
    assert first == second and first["step"] == len(loader())


class Plain(L.LightningModule):
    """The same network without a method, or with a wrapped optimizer."""

    def __init__(self, wrapped: bool = False) -> None:
        super().__init__()
        self.network: nn.Module = network()
        self.wrapped = wrapped

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return SAM().wrap(sgd(self), model=self) if self.wrapped else sgd(self)


def test_the_checkpoint_of_plain_training_loads_and_the_method_begins(options: dict[str, Any], tmp_path: Path) -> None:
    path = checkpoint(tmp_path, Plain(), options)
    net = Net(SAM(interval=3))
    fit(net, {**options, "max_epochs": 2}, ckpt_path=path)
    assert net._sharpness_aware is not None and net._sharpness_aware.method_state_dict()["step"] == len(loader())


def test_training_that_does_not_resume_starts_fresh(options: dict[str, Any], tmp_path: Path) -> None:
    """Weights may come from a checkpoint without its training: by `load_from_checkpoint`, or by a validation."""
    path = checkpoint(tmp_path, Net(), options)
    assert torch.load(path, weights_only=False)["sharpness_aware"]["step"] == len(loader())
    net = Net.load_from_checkpoint(path)
    net.validation_step = lambda *_: None
    L.Trainer(**options).validate(net, loader(), ckpt_path=path)
    fit(net, options)
    assert net._sharpness_aware is not None and net._sharpness_aware.method_state_dict()["step"] == len(loader())


def test_the_snippet_of_manual_optimization_resumes(options: dict[str, Any], tmp_path: Path) -> None:
    def undropped() -> Any:
        model: Any = network()
        model[3].p = 0.0  # Lightning does not save random streams
        return model

    names = {"L": L, "network": undropped, "data": loader(), "options": options, "AESAM": lambda **_: LookSAM(k=3)}
    cls: Any = run("Lightning, manual optimization", **names)["Net"]
    whole, first, second = cls(), cls(), cls()
    fit(whole, {**options, "max_epochs": 2})
    fit(second, {**options, "max_epochs": 2}, ckpt_path=checkpoint(tmp_path, first, options))
    assert same(dict(second.network.state_dict()), dict(whole.network.state_dict()))
    assert second.sharpness_aware.method_state_dict() == whole.sharpness_aware.method_state_dict()


def test_an_exception_leaves_the_clean_weights(options: dict[str, Any]) -> None:
    class Breaks(Net):
        passes = 0

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            Breaks.passes += 1
            if Breaks.passes == 2:
                raise RuntimeError("broken in the second pass")
            return super().training_step(batch, batch_idx)

    net = Breaks(SAM(rho=0.5))
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(RuntimeError, match="broken"):
        fit(net, options)
    assert same(before, [p.data for p in net.parameters()])


def test_a_training_step_that_returns_nothing_is_refused(options: dict[str, Any]) -> None:
    """Lightning would leave the step out; what the passes after it should repeat is then unknown."""
    net = Net()
    net.training_step = lambda *_: None
    with pytest.raises(TypeError, match="closure returned None"):
        fit(net, options)


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("method", [METHOD, SAM(rho=0.5), LookSAM(k=2), MomentumSAM(rho=0.5)], ids=str)
def test_accumulated_batches_train_as_one_closure_over_them(options: dict[str, Any], method: Method, k: int) -> None:
    """BatchNorm's statistics, masks and clipping included."""
    net = Net(method)
    net.configure_optimizers = lambda: momentum(net)
    fit(net, {**options, "accumulate_grad_batches": k, "gradient_clip_val": 0.05})
    other: Any = network()
    torch.manual_seed(2)
    optimizer: Any = method.wrap(momentum(other), model=other, total_steps=8 // k)
    for microbatches in grouped(loader(), k):
        optimizer.backward(lambda microbatches=microbatches: backward_over(other, microbatches, k))
        nn.utils.clip_grad_norm_(other.parameters(), 0.05)
        optimizer.step()
        optimizer.zero_grad()
    assert same(dict(net.network.state_dict()), dict(other.state_dict()))
    assert net._sharpness_aware.method_state_dict() == optimizer.method_state_dict()


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def backward_over(model: nn.Module, microbatches: Any, k: int) -> Tensor:
    losses = []
    for x, y in microbatches:
        loss = cross_entropy(model(x), y) / k
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def test_the_last_step_of_an_epoch_may_have_fewer_batches(options: dict[str, Any]) -> None:
    net, other = Net(SAM(rho=0.5)), network()
    fit(net, {**options, "accumulate_grad_batches": 3})
    torch.manual_seed(2)
    optimizer: Any = SAM(rho=0.5).wrap(sgd(other), model=other)
    batches = list(loader())
    for step in (batches[:3], batches[3:6], batches[6:]):
        optimizer.step(lambda step=step: backward_over(other, step, 3))
        optimizer.zero_grad()
    assert same(dict(net.network.state_dict()), dict(other.state_dict()))


def test_an_epoch_that_is_cut_short_leaves_no_batch_to_the_next(options: dict[str, Any]) -> None:
    class Short(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 3 else None

    net, other = Short(SAM(rho=0.5)), network()
    fit(net, {**options, "accumulate_grad_batches": 2, "max_epochs": 2})
    torch.manual_seed(2)
    optimizer: Any = SAM(rho=0.5).wrap(sgd(other), model=other)
    for _ in range(2):
        batches = list(loader())
        optimizer.step(lambda step=batches[:2]: backward_over(other, step, 2))
        optimizer.zero_grad()
        with torch.no_grad():
            other(batches[2][0])  # the third batch counts for BatchNorm, and its gradient is dropped
    assert same(dict(net.network.state_dict()), dict(other.state_dict()))


@pytest.mark.parametrize("k", [1, 3])
def test_lightnings_own_progress_is_that_of_plain_training(options: dict[str, Any], k: int) -> None:
    """Batches, steps, and how often gradients were zeroed."""
    found = [fit(net, {**options, "accumulate_grad_batches": k, "max_epochs": 2}) for net in (Plain(), Net(SAM()))]
    assert found[0].fit_loop.state_dict() == found[1].fit_loop.state_dict()
    assert found[0].global_step == found[1].global_step


def test_batches_are_kept_no_longer_than_the_step(options: dict[str, Any]) -> None:
    net = Net(SAM())
    fit(net, {**options, "accumulate_grad_batches": 4})
    assert not net._sharpness_aware._context.passes.begun


@pytest.mark.parametrize("k", [1, 2])
def test_a_repetition_is_not_counted_logged_or_printed(
    options: dict[str, Any], k: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by callbacks, nor by what a training step writes to a logger itself."""

    class Counts(L.Callback):
        backwards, losses = 0, ()

        def __init__(self) -> None:
            self.norms: list[float] = []

        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            self.backwards += 1
            self.norms.append(1.0)

    class Writes(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.logger.experiment.add_scalar("written", 1.0)
            self.print("printed")
            return super().training_step(batch, batch_idx)

    class Logger(L.pytorch.loggers.logger.DummyLogger):
        def __init__(self) -> None:
            self.written: list[Any] = []

        @property
        def experiment(self) -> Any:
            return type("", (), {"add_scalar": lambda _, *args: self.written.append(args)})()

    counts, logger = Counts(), Logger()
    net = Writes(SAM(rho=0.5))
    settings = {"callbacks": [counts], "logger": logger, "accumulate_grad_batches": k, "log_every_n_steps": 10}
    fit(net, {**options, **settings})
    assert counts.backwards == len(counts.norms) == len(logger.written) == len(loader())
    assert capsys.readouterr().out.count("printed") == len(loader())


def test_a_hook_that_changes_gradients_acts_in_every_pass(options: dict[str, Any]) -> None:
    class Halves(L.Callback):
        def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
            for p in pl_module.parameters():
                p.grad.mul_(0.5)

    net = Net(SAM(rho=0.5))
    fit(net, {**options, "callbacks": [Halves()]})
    other = network()
    torch.manual_seed(2)
    optimizer: Any = SAM(rho=0.5).wrap(torch.optim.SGD(other.parameters(), lr=0.05), model=other)
    for step in grouped(loader()):
        optimizer.step(lambda step=step: (optimizer.zero_grad(), backward_over(other, step, 1))[1])
    torch.testing.assert_close(dict(net.network.state_dict()), dict(other.state_dict()), rtol=1e-5, atol=1e-7)


def test_the_mixin_after_the_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"class Wrong: .* must come before .* class Wrong\(SharpnessAwareMixin, Light"):

        class Wrong(L.LightningModule, SharpnessAwareMixin):
            pass

    with pytest.raises(TypeError, match="class Late: "):

        class Late(Plain, SharpnessAwareMixin):
            pass

    class Right(SharpnessAwareMixin, Plain):
        pass


@pytest.mark.parametrize("k", [1, 2])
def test_hooks_of_the_users_own_without_super_train_by_the_method(options: dict[str, Any], k: int) -> None:
    class Own(Net):
        def on_fit_start(self) -> None:
            pass

        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step(closure=optimizer_closure)

    net, expected = Own(SAM(rho=0.5)), Net(SAM(rho=0.5))
    trainer = fit(net, {**options, "accumulate_grad_batches": k})
    fit(expected, {**options, "accumulate_grad_batches": k})
    assert same(dict(net.network.state_dict()), dict(expected.network.state_dict()))
    assert trainer.callback_metrics["sam/gradients"] == 2.0


class Searched(Net):
    """What can be searched for, and without masks, as searches draw random numbers."""

    def __init__(self, method: Method) -> None:
        super().__init__(method)
        self.network[3].p = 0.0
        self.lr, self.batch_size = 0.1, 4

    def train_dataloader(self) -> Any:
        return loader(self.batch_size)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


SEARCHES: dict[str, Any] = {
    "lr_find": lambda tuner, net: tuner.lr_find(net, num_training=6, update_attr=False),
    "scale_batch_size": lambda tuner, net: tuner.scale_batch_size(net, max_trials=2, init_val=2),
}


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("method", [SAM(rho=0.5, interval=4), AESAM()], ids=str)
def test_a_search_before_training_trains_and_leaves_nothing(
    options: dict[str, Any], search: Any, method: Method, k: int
) -> None:
    net, expected = Searched(method), Searched(method)
    trainer = L.Trainer(**options, accumulate_grad_batches=k)
    search(L.pytorch.tuner.Tuner(trainer), net)
    net.batch_size = 4
    assert net._sharpness_aware is not None and net._sharpness_aware.method_state_dict()["step"] > 0
    trainer.fit(net)
    L.Trainer(**options, accumulate_grad_batches=k).fit(expected)
    assert same(dict(net.network.state_dict()), dict(expected.network.state_dict()))
    assert net._sharpness_aware.method_state_dict() == expected._sharpness_aware.method_state_dict()


FINDERS: dict[str, dict[str, Any]] = {
    "LearningRateFinder": {"num_training_steps": 6, "update_attr": False},
    "BatchSizeFinder": {"max_trials": 2},
}


@pytest.mark.parametrize("calls_super", [True, False])
@pytest.mark.parametrize("finder", FINDERS)
def test_a_search_when_training_begins_leaves_nothing_but_its_find(
    options: dict[str, Any], finder: str, calls_super: bool
) -> None:
    class Own(Searched):
        def on_fit_start(self) -> None:
            if calls_super:
                super().on_fit_start()

    net, expected = Own(SAM(rho=0.5, interval=4)), Searched(SAM(rho=0.5, interval=4))
    L.Trainer(**options, callbacks=[getattr(L.pytorch.callbacks, finder)(**FINDERS[finder])]).fit(net)
    expected.batch_size = net.batch_size
    L.Trainer(**options).fit(expected)
    assert same(dict(net.network.state_dict()), dict(expected.network.state_dict()))
    assert net._sharpness_aware.method_state_dict() == expected._sharpness_aware.method_state_dict()


class Between(L.pytorch.callbacks.LearningRateFinder):
    """Searches before the second epoch only, as in Lightning's own example."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        pass

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            before = pl_module._sharpness_aware.method_state_dict()["step"]
            self.lr_find(trainer, pl_module)
            pl_module.searched = pl_module._sharpness_aware.method_state_dict()["step"] > before


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("method", [SAM(rho=0.5, interval=3), LookSAM(rho=0.5, k=3)], ids=str)
def test_a_search_between_epochs_restores_what_the_method_remembers(
    options: dict[str, Any], method: Method, k: int
) -> None:
    net, expected = Searched(method), Searched(method)
    options = {**options, "max_epochs": 3, "accumulate_grad_batches": k}
    L.Trainer(**options, callbacks=[Between(num_training_steps=4, update_attr=False)]).fit(net)
    L.Trainer(**options).fit(expected)
    assert net.searched
    assert same(dict(net.network.state_dict()), dict(expected.network.state_dict()))
    assert net._sharpness_aware.method_state_dict() == expected._sharpness_aware.method_state_dict()


def test_weight_averaging_recomputes_batchnorm_without_the_method(options: dict[str, Any]) -> None:
    """In an epoch of its own, without backward passes."""
    averaging = lambda: L.pytorch.callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2)  # noqa: E731
    net, plain = Net(LateSAM(start=1.0)), Plain()
    for trained_net in (net, plain):
        fit(trained_net, {**options, "max_epochs": 4, "callbacks": [averaging()]})
    assert same(dict(net.network.state_dict()), dict(plain.network.state_dict()))


def test_the_epoch_that_weight_averaging_adds_is_not_counted_as_training(options: dict[str, Any]) -> None:
    net = Net(LateSAM(rho=0.5, start=0.75))
    averaging = L.pytorch.callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2)
    fit(net, {**options, "max_epochs": 4, "callbacks": [averaging]})
    state = net._sharpness_aware.method_state_dict()
    assert (state["step"], state["sharp"]) == (4 * len(loader()), len(loader()))


class Stream(torch.utils.data.IterableDataset):
    """Has no length."""

    def __iter__(self) -> Any:
        return iter(loader().dataset)  # pyright: ignore[reportArgumentType]


def test_data_without_a_length_trains_unless_the_method_asks_for_the_number_of_steps(options: dict[str, Any]) -> None:
    data: Any = torch.utils.data.DataLoader(Stream(), batch_size=4)
    net = Net(SAM())
    L.Trainer(**options).fit(net, data)
    assert net._sharpness_aware.method_state_dict()["step"] == len(loader())
    with pytest.raises(
        ValueError, match=r"Net: method=AESAM.* number of steps .* unknown here. Use Trainer\(max_steps"
    ):
        L.Trainer(**options).fit(Net(AESAM()), data)
    net = Net(AESAM())
    L.Trainer(**{**options, "max_epochs": None}, max_steps=5).fit(net, data)
    assert net._sharpness_aware.method_state_dict()["step"] == 5


@pytest.mark.parametrize(("method", "order"), [(SAM(), ["begun", "data"]), (AESAM(), ["data", "begun"])], ids=str)
def test_data_is_not_loaded_early_for_methods_that_read_no_progress(
    options: dict[str, Any], method: Method, order: list[str]
) -> None:
    events = []

    class Noted(Searched):
        def on_fit_start(self) -> None:
            super().on_fit_start()
            events.append("begun")

        def train_dataloader(self) -> Any:
            events.append("data")
            return super().train_dataloader()

    L.Trainer(**options).fit(Noted(method))
    assert events == order


def test_accumulation_that_changes_from_epoch_to_epoch(options: dict[str, Any]) -> None:
    schedule = lambda: L.pytorch.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})  # noqa: E731
    net, other = Net(SAM(rho=0.5)), network()
    fit(net, {**options, "max_epochs": 2, "callbacks": [schedule()]})
    torch.manual_seed(2)
    data = loader()
    optimizer: Any = SAM(rho=0.5).wrap(sgd(other), model=other)
    for k in (1, 2):
        for step in grouped(data, k):
            optimizer.step(lambda step=step, k=k: backward_over(other, step, k))
            optimizer.zero_grad()
    assert same(dict(net.network.state_dict()), dict(other.state_dict()))
    with pytest.raises(ValueError, match=r"number of steps.*GradientAccumulationScheduler changes that number"):
        fit(Net(AESAM()), {**options, "callbacks": [schedule()]})


@pytest.mark.parametrize("k", [1, 2])
def test_a_second_fit_and_another_module_of_the_same_trainer(options: dict[str, Any], k: int) -> None:
    trainer, net, plain = L.Trainer(**options, accumulate_grad_batches=k), Net(SAM()), Plain()
    trainer.fit(net, loader())
    trainer.fit_loop.epoch_progress.reset()
    trainer.fit(plain, loader())
    trainer.fit_loop.epoch_progress.reset()
    trainer.fit(net, loader())
    assert net._sharpness_aware.method_state_dict()["step"] == len(loader()) // k
    assert not hasattr(plain, "_sharpness_aware")


class Sharded(L.pytorch.strategies.SingleDeviceStrategy):
    """Says that it is one of Lightning's that steps in its own way, which none on this machine is."""


Sharded.__module__ = "lightning.pytorch.strategies.sharded"

REFUSED: Sequence[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("method=None: method must be", {"method": None}, {}),
    ("needs a closure that takes samples", {"method": ESAM()}, {}),
    ("automatic_optimization is off", {"automatic_optimization": False}, {}),
    ("training_step\\(dataloader_iter\\)", {"training_step": lambda dataloader_iter: None}, {}),
    ("the strategy must be one of SingleDeviceStrategy, DDPStrategy", {}, {"strategy": Sharded("cpu")}),
]


@pytest.mark.parametrize(("why", "attributes", "settings"), REFUSED)
def test_what_cannot_be_right_is_refused(
    options: dict[str, Any], why: str, attributes: dict[str, Any], settings: dict[str, Any]
) -> None:
    net = Net()
    for name, value in attributes.items():
        setattr(net, name, value)
    with pytest.raises(ValueError, match=why):
        fit(net, {**options, **settings})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_wrapped_optimizer_without_the_mixin_is_refused(options: dict[str, Any], accumulate: int) -> None:
    """It would clip and log at every pass."""
    with pytest.raises(TypeError, match="already wrapped"):
        fit(Plain(wrapped=True), {**options, "accumulate_grad_batches": accumulate})


class InParts:
    """Two parameter groups, of which the first may have a radius of its own."""

    rho: float | None = None

    def configure_optimizers(self: Any) -> Any:
        first, *others = self.parameters()
        own = {} if self.rho is None else {"rho": self.rho}
        return torch.optim.SGD([{"params": [first], **own}, {"params": others}], lr=0.1, momentum=0.9)


class PlainInParts(InParts, Plain):
    pass


class NetInParts(InParts, Net):
    rho = 0.0


def test_a_groups_own_radius_survives_the_checkpoint_of_plain_training(options: dict[str, Any], tmp_path: Path) -> None:
    path = checkpoint(tmp_path, PlainInParts(), options)
    net = NetInParts(SAM(rho=0.5))
    trainer = fit(net, {**options, "max_epochs": 2}, ckpt_path=path)
    assert [group.get("rho") for group in trainer.optimizers[0].param_groups] == [0.0, None]


def test_a_start_that_was_never_reached_warns_at_the_end_of_fit(options: dict[str, Any]) -> None:
    class Stops(Net):
        def on_train_epoch_end(self) -> None:
            self.trainer.should_stop = True

    with pytest.warns(UserWarning, match=r"None of \d+ steps was sharpness-aware.*Late\(start=0.9\)"):
        fit(Stops(LateSAM()), {**options, "max_epochs": 3})
    fit(Net(LateSAM()), {**options, "max_epochs": 3})


def test_a_silent_logger_can_be_read_and_does_nothing() -> None:
    from types import SimpleNamespace

    from sam_algos.integrations.lightning import _Silence

    said: list[str] = []
    real = SimpleNamespace(log_dir="runs", version=3, experiment=SimpleNamespace(add=said.append), name=None)
    silent = _Silence(real)
    assert Path(silent.log_dir, "images") == Path("runs", "images") and silent.version >= 0
    with silent.experiment as experiment:
        experiment.add("a").again("b")
    assert list(silent.experiment) == [] and said == []
    with pytest.raises(AttributeError):
        _ = silent.unknown


def test_a_trainer_that_a_module_is_attached_to_can_be_pickled(options: dict[str, Any]) -> None:
    """Processes that are spawned get it that way."""
    net = Net()
    trainer = net.trainer = L.Trainer(**options)
    loop = pickle.loads(pickle.dumps(trainer)).fit_loop.epoch_loop.automatic_optimization
    assert type(loop) is type(trainer.fit_loop.epoch_loop.automatic_optimization)
