"""Hugging Face's Trainer, and language models of its library in a plain loop."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sam_algos import AESAM, ESAM, SAM, LateSAM, LookSAM, Method
from tests.cases import same
from tests.integrations.page import METHOD, run

NEEDED = "needs transformers and accelerate: pip install 'sam_algos[frameworks]'"
transformers: Any = pytest.importorskip(
    "transformers", reason="needs transformers: pip install 'sam_algos[frameworks]'"
)
accelerate: Any = pytest.importorskip("accelerate", reason=NEEDED)

pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own

STEPS, MICROBATCHES, SIZE, RATE = 6, 2, 3, 0.5


def language_model(dropout: float = 0.1) -> nn.Module:
    torch.manual_seed(0)
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    sizes = {"vocab_size": 32, "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **rates))


def tokens() -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(32, (9,), generator=draw) for _ in range(STEPS * MICROBATCHES * SIZE)]


def trainer(folder: Path, method: Any = METHOD, model: nn.Module | None = None, **options: Any) -> Any:
    from sam_algos.integrations.transformers import SharpnessAwareTrainer

    return SharpnessAwareTrainer(
        model or language_model(),
        arguments(folder, **options),
        train_dataset=[{"input_ids": ids, "labels": ids} for ids in tokens()],
        method=method,
    )


def arguments(folder: Path, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "per_device_train_batch_size": SIZE,
        "gradient_accumulation_steps": MICROBATCHES,
        "max_steps": STEPS,
        "learning_rate": RATE,
        "max_grad_norm": 0.5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "optim": "sgd",
        **options,
    }
    return transformers.TrainingArguments(str(folder), **settings)


class InOrder:
    """Makes a Trainer read its data in order."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)  # pyright: ignore[reportAttributeAccessIssue]


def expected(method: Method, model: nn.Module) -> Any:
    """The same training in a plain loop, with the Trainer's loss: the step's sum over its number of tokens."""
    optimizer = method.wrap(torch.optim.SGD(model.parameters(), lr=RATE), model=model, total_steps=STEPS)
    optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(model.parameters(), 0.5) and None)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer.base_optimizer, 0, STEPS)
    ids = torch.stack(tokens()).view(STEPS, MICROBATCHES, SIZE, -1)
    model.train()
    losses = []
    for step in ids:

        def closure(step: Tensor = step) -> Tensor:
            optimizer.zero_grad()
            total = torch.zeros(())
            for batch in step:
                loss = model(input_ids=batch, labels=batch, num_items_in_batch=step.numel()).loss
                loss.backward()
                total = total + loss.detach()
            return total

        losses.append(float(optimizer.step(closure)))
        schedule.step()
    return optimizer, losses


@pytest.mark.parametrize("method", [SAM(rho=0.5), AESAM(rho=0.5), LookSAM(rho=0.5, k=2)], ids=str)
def test_the_trainer_trains_as_a_plain_loop_does(tmp_path: Path, method: Method) -> None:
    """With accumulation, clipping that acts on no decision, and its schedule; and it logs the first pass's loss."""
    model, other = language_model(0.0), language_model(0.0)
    found = in_order(trainer(tmp_path, method, model))
    found.train()
    optimizer, losses = expected(method, other)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    logs = [log for log in found.state.log_history if "loss" in log]
    assert [log["loss"] for log in logs] == pytest.approx(losses, abs=1e-3)
    assert [log["sam/gradients"] for log in logs][-1] == optimizer.metrics["sam/gradients"]
    assert logs[-1]["sam/grad_norm"] == pytest.approx(optimizer.metrics["sam/grad_norm"], rel=1e-3)


def in_order(found: Any) -> Any:
    found.__class__ = type("Ordered", (InOrder, type(found)), {})
    return found


def test_the_snippet(tmp_path: Path) -> None:
    data = [{"input_ids": ids, "labels": ids} for ids in tokens()]
    names = run("Hugging Face Trainer", model=language_model(), arguments=arguments(tmp_path), dataset=data)
    assert names["trainer"].state.global_step == STEPS
    assert names["trainer"]._sharpness_aware.method_state_dict()["step"] == STEPS


@pytest.mark.parametrize("device_precision", ["float32", "bf16"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, device_precision: str) -> None:
    options = {"bf16": device_precision == "bf16", "optim": "adamw_torch", "learning_rate": 1e-2}
    method = LookSAM(rho=0.5, k=3)
    whole = trainer(tmp_path / "whole", method, **options)
    whole.train()
    first = trainer(tmp_path / "first", method, save_strategy="steps", save_steps=4, **options)
    first.train()
    second = trainer(tmp_path / "second", method, **options)
    second.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-4"))
    assert (tmp_path / "first" / "checkpoint-4" / "sharpness_aware.pt").is_file()
    assert same(dict(second.model.state_dict()), dict(whole.model.state_dict()))
    assert second._sharpness_aware.method_state_dict() == whole._sharpness_aware.method_state_dict()


def test_the_checkpoint_of_plain_training_loads_and_the_method_begins(tmp_path: Path) -> None:
    data = [{"input_ids": ids, "labels": ids} for ids in tokens()]
    options = {"save_strategy": "steps", "save_steps": 4}
    plain = transformers.Trainer(language_model(), arguments(tmp_path / "plain", **options), train_dataset=data)
    plain.train()
    found = trainer(tmp_path / "second")
    found.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-4"))
    assert found._sharpness_aware.method_state_dict()["step"] == STEPS - 4


def test_fp16_scales_and_unscales_around_it(tmp_path: Path) -> None:
    """The Trainer wants a GPU for it: give its accelerator a scaler, and leave the arithmetic in float32."""
    plain = trainer(tmp_path)
    plain.train()
    scaled = trainer(tmp_path)
    accelerator = scaled.accelerator
    accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("cpu"), True
    accelerator.state._mixed_precision = "fp16"
    accelerator.autocast_handler = accelerate.utils.AutocastKwargs(enabled=False)
    try:
        scaled.train()
    finally:
        accelerator.state._mixed_precision = "no"
    assert accelerator.scaler.get_scale() == 2.0**16
    assert same(dict(scaled.model.state_dict()), dict(plain.model.state_dict()))


def test_an_exception_leaves_the_clean_weights(tmp_path: Path) -> None:
    model = language_model()
    before = [p.clone() for p in model.parameters()]
    passes = []

    def breaks(*_: Any) -> None:
        passes.append(1)
        if len(passes) == MICROBATCHES + 1:
            raise RuntimeError("broken in the second pass")

    model.register_forward_pre_hook(breaks)
    found = trainer(tmp_path, SAM(rho=0.5), model)
    with pytest.raises(RuntimeError, match="broken"):
        found.train()
    assert same(before, [p.data for p in model.parameters()])


@pytest.mark.parametrize("method", [None, ESAM(), SAM(ascent_fraction=0.5)], ids=str)
def test_what_has_no_method_for_whole_batches_is_refused(tmp_path: Path, method: Any) -> None:
    with pytest.raises(ValueError, match=r"SharpnessAwareTrainer\(method="):
        trainer(tmp_path, method)


def test_a_training_step_on_its_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="outside of train"):
        trainer(tmp_path).training_step(language_model(), {})


@pytest.mark.parametrize("name", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_programs_that_shard_or_step_in_their_own_way_are_refused(tmp_path: Path, name: str) -> None:
    class Begins(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            setattr(found, name, True)

    found = trainer(tmp_path)
    found.add_callback(Begins())
    with pytest.raises(ValueError, match="FSDP" if "fsdp" in name else "DeepSpeed"):
        found.train()


def test_optimizers_that_step_in_the_backward_pass_are_refused(tmp_path: Path) -> None:
    class Begins(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            found.args.optim = "lomo"

    found = trainer(tmp_path)
    found.add_callback(Begins())
    with pytest.raises(ValueError, match="LOMO"):
        found.train()


def test_the_mixin_after_the_trainer_is_refused() -> None:
    from sam_algos.integrations.transformers import SharpnessAwareMixin

    with pytest.raises(TypeError, match=r"class Wrong: .* must come before .* class Wrong\(SharpnessAwareMixin, Train"):

        class Wrong(transformers.Trainer, SharpnessAwareMixin):
            pass


PREPARED: list[int] = []  # on no object, so that every call counts


class Counts:
    """Counts, keeps and logs in its loss, as the Trainers of other packages do, and generates what it trains on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.tokens, self.generated, self.written = 0, 0, []
        self.metrics: Any = {"train": collections.defaultdict(list)}
        self.buffer: Any = None
        super().__init__(*args, **kwargs)

    def _prepare_inputs(self, inputs: Any) -> Any:
        if self.generated % 3 == 0:
            self.buffer = torch.rand(())
        self.generated += 1
        PREPARED.append(self.generated)
        return {**super()._prepare_inputs(inputs), "shift": self.buffer}  # pyright: ignore[reportAttributeAccessIssue]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        shift = inputs.pop("shift")
        self.tokens += inputs["input_ids"].numel()
        self.state.num_input_tokens_seen += 1  # pyright: ignore[reportAttributeAccessIssue]
        loss = super().compute_loss(model, inputs, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        self.metrics["train"]["shift"].append(float(shift))
        self.metrics["train"]["many"] += [float(loss)] * 600
        self.log({"inside": float(shift)})  # pyright: ignore[reportAttributeAccessIssue]
        return loss

    def log(self, logs: Any, *args: Any, **kwargs: Any) -> None:
        self.written.append(sorted(logs))
        super().log(logs, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("order", ["mixin first", "mixin second"])
def test_a_repetition_counts_logs_and_generates_nothing(tmp_path: Path, order: str) -> None:
    from sam_algos.integrations.transformers import SharpnessAwareMixin, SharpnessAwareTrainer

    class Plain(Counts, transformers.Trainer):
        pass

    class First(SharpnessAwareMixin, Plain):
        pass

    class Second(Counts, SharpnessAwareTrainer):
        pass

    data = [{"input_ids": ids, "labels": ids} for ids in tokens()]
    found: Any = (First if order == "mixin first" else Second)(
        language_model(), arguments(tmp_path), train_dataset=data, method=SAM(rho=0.5)
    )
    expected: Any = Plain(language_model(), arguments(tmp_path), train_dataset=data)
    logged: list[list[str]] = []

    class Logs(transformers.TrainerCallback):
        def on_log(self, *_: Any, logs: Any, **__: Any) -> None:
            logged[-1] += [name for name in logs if not name.startswith("sam/")]

    PREPARED.clear()
    for one in (found, expected):
        logged.append([])
        one.add_callback(Logs())
        torch.manual_seed(7)
        one.train()
    assert logged[0] == logged[1]
    assert len(PREPARED) == 2 * STEPS * MICROBATCHES
    assert found._sharpness_aware.metrics["sam/gradients"] == 2.0
    for name in ("tokens", "generated"):
        assert getattr(found, name) == getattr(expected, name)
    assert found.metrics["train"]["shift"] == expected.metrics["train"]["shift"]
    assert len(found.metrics["train"]["many"]) == len(expected.metrics["train"]["many"])
    assert found.metrics["train"]["many"][:600] == pytest.approx(expected.metrics["train"]["many"][:600])
    assert found.state.num_input_tokens_seen == expected.state.num_input_tokens_seen
    if order == "mixin first":
        assert found.written and len(found.written) == len(expected.written)
    inside = [[log["inside"] for log in one.state.log_history if "inside" in log] for one in (found, expected)]
    assert inside[0] == inside[1]


def test_a_loss_that_takes_entries_out_of_its_inputs_is_computed_again(tmp_path: Path) -> None:
    """As label smoothing does."""
    found = trainer(tmp_path, SAM(rho=0.5), label_smoothing_factor=0.1)
    found.train()
    assert found._sharpness_aware.metrics["sam/gradients"] == 2.0


def test_training_twice_begins_twice(tmp_path: Path) -> None:
    found = trainer(tmp_path)
    found.train()
    found.train()
    assert found._sharpness_aware.method_state_dict()["step"] == STEPS


def test_a_language_model_in_a_plain_loop() -> None:
    names = run("Causal language models in a plain loop", tokens=torch.stack(tokens()[:12]).split(3))
    assert names["optimizer"].method_state_dict()["step"] == 2


def test_a_start_that_was_never_reached_is_told_at_the_end_of_training(tmp_path: Path) -> None:
    class Stops(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == 2

    stopped = trainer(tmp_path, LateSAM())
    stopped.add_callback(Stops())
    with pytest.warns(UserWarning, match=r"None of 2 steps was sharpness-aware.*Late\(start=0.9\)"):
        stopped.train()


def test_a_groups_own_radius_survives_the_checkpoint_of_plain_training(tmp_path: Path) -> None:
    data = [{"input_ids": ids, "labels": ids} for ids in tokens()]

    def groups(model: nn.Module, **own: float) -> Any:
        first, *others = model.parameters()
        return torch.optim.SGD([{"params": [first], **own}, {"params": others}], lr=RATE), None

    model = language_model()
    options = {"save_strategy": "steps", "save_steps": 4}
    plain = transformers.Trainer(
        model, arguments(tmp_path / "plain", **options), train_dataset=data, optimizers=groups(model)
    )
    plain.train()
    found = trainer(tmp_path / "second")
    found.optimizer, _ = groups(found.model, rho=0.0)
    found.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-4"))
    assert [group.get("rho") for group in found._sharpness_aware.param_groups] == [0.0, None]
