"""Hugging Face's ``Trainer``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer

from sam_algos.core.objective.radii import OwnRadii
from sam_algos.method import Method

if TYPE_CHECKING:
    from sam_algos.core.stepping.optimizer import SharpnessAwareOptimizer

__all__ = ["SharpnessAwareMixin", "SharpnessAwareTrainer"]

_FILE = "sharpness_aware.pt"


class SharpnessAwareMixin(Trainer if TYPE_CHECKING else object):
    """Makes a ``Trainer`` train with a sharpness-aware method; put it before ``Trainer`` in the bases.

    The first pass of a step is the Trainer's own, microbatch by microbatch, and its logs and counts are kept. Later
    passes repeat it on all microbatches of the step, which are kept until its end. They call the Trainer's own
    ``training_step`` on the inputs prepared in the first pass. They log nothing, and leave no trace in attributes of
    the Trainer. The Trainer still does clipping, the ``GradScaler``, schedulers and checkpoints, on the method's
    gradient. The method's memory is a separate file in the checkpoint's folder, ``sharpness_aware.pt``. A checkpoint
    without this file loads too, and the method then starts fresh. The method's metrics are logged with the loss.
    `docs/frameworks.md` has an example.

    Args:
        *args (Any): Passed to the Trainer.
        method (Method): The method, e.g. ``AESAM(rho=0.05)``. Its passes must run on the whole batch.
        **kwargs (Any): Passed to the Trainer.

    Raises:
        TypeError: If a class lists the mixin after ``Trainer``.
        ValueError: If ``method`` is not a method or needs passes on some of the samples. When training begins, if the
            base optimizer cannot be wrapped, the model is sharded (FSDP), or other code than PyTorch takes the steps
            (DeepSpeed, apex, LOMO).
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class in which Trainer would hide the mixin."""
        super().__init_subclass__(**kwargs)
        if Trainer in cls.__mro__[: cls.__mro__.index(SharpnessAwareMixin)]:
            raise TypeError(
                f"class {cls.__name__}: SharpnessAwareMixin must come before the Trainer, which would hide it: "
                f"class {cls.__name__}(SharpnessAwareMixin, Trainer)."
            )

    def __init__(self, *args: Any, method: Method, **kwargs: Any) -> None:
        if not isinstance(method, Method):
            raise ValueError(
                f"{type(self).__name__}(method={method!r}): method must be a method of sam_algos, e.g. SAM()."
            )
        parts = method.composition()
        if parts.samples.selects or parts.reader("reads_losses") is not None:
            raise ValueError(
                f"{type(self).__name__}(method={method!r}): method must run every pass on the whole batch, as the "
                "Trainer computes one loss for the batch."
            )
        self.method = method
        self._sharpness_aware: SharpnessAwareOptimizer | None = None
        self._loaded: dict[str, Any] | None = None
        self._trains = False
        super().__init__(*args, **kwargs)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Train with a fresh method, or with its memory from a checkpoint; warn if the method never acted."""
        self._sharpness_aware, self._loaded, self._trains = None, None, True
        try:
            output = super()._inner_training_loop(*args, **kwargs)
        finally:
            self._trains = False
        if self._sharpness_aware is not None:
            self._sharpness_aware.warn_if_idle()
        return output

    def _wrap(self) -> SharpnessAwareOptimizer:
        """Wrap the optimizer in the method. This waits for the first step, when the model has its final form."""
        if not self._trains:
            raise RuntimeError(f"{type(self).__name__}: training_step was called outside of train().")
        if self.is_deepspeed_enabled or getattr(self, "use_apex", False) or "lomo" in str(self.args.optim).lower():
            raise ValueError(
                f"{type(self).__name__}: DeepSpeed, apex and LOMO are not supported, as they take steps that PyTorch "
                "does not see. Train without them."
            )
        if self.is_fsdp_enabled:
            raise ValueError(f"{type(self).__name__}: FSDP is not supported; leave TrainingArguments(fsdp=) empty.")
        base: Any = self.optimizer
        base = getattr(base, "optimizer", base)  # unwrap accelerate's optimizer
        model: Any = self.model_wrapped
        optimizer = self.method.wrap(base, model=model, total_steps=self.state.max_steps)
        optimizer.count_once(lambda: (self, self.state, self.control))
        if self._loaded is not None:
            optimizer.load_method_state_dict(self._loaded)
            self._loaded = None
        self._sharpness_aware = optimizer
        return optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        """Also load the method's memory, and let parameter groups keep their own radii."""
        optimizer: Any = self.optimizer
        radii = OwnRadii(getattr(optimizer, "optimizer", optimizer))
        super()._load_optimizer_and_scheduler(checkpoint)
        radii.forget()
        if checkpoint is not None and (file := Path(checkpoint, _FILE)).is_file():
            self._loaded = torch.load(file, weights_only=True)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Also save the method's memory."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self._sharpness_aware is not None:
            torch.save(self._sharpness_aware.method_state_dict(), Path(output_dir, _FILE))

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run the microbatch's part of the first pass, and with the step's last microbatch all later passes."""
        optimizer = self._sharpness_aware or self._wrap()
        step = super().training_step
        microbatch = _Microbatch(self, lambda: step(model, inputs, num_items_in_batch).detach())
        if self.accelerator.sync_gradients:
            optimizer.backward(microbatch, scaler=self.accelerator.scaler)
        else:
            optimizer.accumulate(microbatch)
        return cast(Tensor, microbatch.loss)  # a first pass has run

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the method's metrics with the loss."""
        if self._sharpness_aware is not None and "loss" in logs:
            logs = {**logs, **self._sharpness_aware.metrics}
        super().log(logs, *args, **kwargs)


class _Microbatch:
    """Passes on a microbatch: a first one, and repetitions that prepare no inputs and log nothing.

    Attributes:
        loss (Tensor | None): The loss of the first pass.
    """

    def __init__(self, trainer: Any, step: Callable[[], Tensor]) -> None:
        self.loss: Tensor | None = None
        self._trainer, self._step = trainer, step
        self._prepared: dict[int, tuple[Any, Any]] = {}

    def __call__(self) -> Tensor:
        """Run a pass. Methods of the Trainer are shadowed on the instance, so that overrides are covered too."""
        trainer, prepare = self._trainer, self._trainer._prepare_inputs
        shadows: dict[str, Any] = {"_prepare_inputs": lambda inputs: self._prepare(inputs, prepare)}
        if self.loss is not None:
            shadows["log"] = lambda *_, **__: None
        own = {name: value for name, value in vars(trainer).items() if name in shadows}
        vars(trainer).update(shadows)
        try:
            loss = self._step()
        finally:
            for name in shadows:
                del vars(trainer)[name]
            vars(trainer).update(own)
        self.loss = loss if self.loss is None else self.loss
        return loss

    def _prepare(self, inputs: Any, prepare: Callable[[Any], Any]) -> Any:
        """Prepare inputs once, as this may generate them; return a copy, as a loss may pop entries."""
        if id(inputs) not in self._prepared:
            self._prepared[id(inputs)] = inputs, prepare(inputs)
        return copy.copy(self._prepared[id(inputs)][1])


class SharpnessAwareTrainer(SharpnessAwareMixin, Trainer):
    """Hugging Face's ``Trainer`` with a sharpness-aware method; see `SharpnessAwareMixin`."""
