"""PyTorch Lightning: the page's snippets, and what the mixin makes right or refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sam_algos import ESAM, SAM, LateSAM, LookSAM, Method
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


def test_fp16_scales_and_unscales_around_it(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The arithmetic stays in float32: the scale is a power of two, and every number that of training without it."""
    from lightning.pytorch.plugins import MixedPrecision

    class Scaled(MixedPrecision):
        def autocast_context_manager(self) -> Any:
            return torch.autocast("cpu", enabled=False)

    scaler = torch.amp.GradScaler("cpu")
    net = Net()
    fit(net, {**options, "gradient_clip_val": 0.05, "plugins": [Scaled("16-mixed", "cpu", scaler)]})
    assert scaler.get_scale() == 2.0**16
    expected = trained(grouped(loader()), clip=0.05, total_steps=8)
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


def test_training_that_does_not_resume_begins_anew(options: dict[str, Any], tmp_path: Path) -> None:
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


class Sharded(L.pytorch.strategies.SingleDeviceStrategy):
    """Says that it is one of Lightning's that steps in its own way, which none on this machine is."""


Sharded.__module__ = "lightning.pytorch.strategies.sharded"

REFUSED: Sequence[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("method=None: method must be", {"method": None}, {}),
    ("needs a closure that takes samples", {"method": ESAM()}, {}),
    ("accumulate_grad_batches=2", {}, {"accumulate_grad_batches": 2}),
    ("automatic_optimization is off", {"automatic_optimization": False}, {}),
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


def test_a_start_that_was_never_reached_is_told_at_the_end_of_fit(options: dict[str, Any]) -> None:
    class Stops(Net):
        def on_train_epoch_end(self) -> None:
            self.trainer.should_stop = True

    with pytest.warns(UserWarning, match=r"None of \d+ steps was sharpness-aware.*Late\(start=0.9\)"):
        fit(Stops(LateSAM()), {**options, "max_epochs": 3})
    fit(Net(LateSAM()), {**options, "max_epochs": 3})
