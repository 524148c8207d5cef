"""Hugging Face's ``Trainer``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from sam_algos.method import Method

if TYPE_CHECKING:
    from sam_algos.core.optimizer import SharpnessAwareOptimizer

__all__ = ["SharpnessAwareMixin", "SharpnessAwareTrainer"]

_FILE = "sharpness_aware.pt"


class SharpnessAwareMixin(Trainer if TYPE_CHECKING else object):
    """Trains by a sharpness-aware method; to be put before a ``Trainer``, as ``SharpnessAwareTrainer`` does.

    All micro-batches of a step wait for the last, and every pass runs over them all, through the Trainer's own
    ``training_step``. Clipping, the ``GradScaler``, schedulers and checkpoints are the Trainer's, and act on
    the method's gradient. What the method remembers is a file of its own in the checkpoint's folder,
    ``sharpness_aware.pt``; a checkpoint without it loads, too, and the method then begins. The method's figures are
    logged with the loss. `docs/frameworks.md` has an example.

    Args:
        *args (Any): As for the Trainer.
        method (Method): The method, e.g. ``AESAM(rho=0.05)``; one whose passes run on the whole batch.
        **kwargs (Any): As for the Trainer.

    Raises:
        ValueError: If ``method`` is none or needs passes on some of the samples; when training begins, if the base
            optimizer cannot be wrapped, the model is sharded (FSDP), or what steps is not PyTorch (DeepSpeed, apex,
            LOMO).
    """

    def __init__(self, *args: Any, method: Method, **kwargs: Any) -> None:
        if not isinstance(method, Method):
            raise ValueError(f"{type(self).__name__}(method={method!r}): method must be one of sam_algos, e.g. SAM().")
        parts = method.composition()
        if parts.samples.selects or parts.reader("reads_losses") is not None:
            raise ValueError(
                f"{type(self).__name__}(method={method!r}): method must run every pass on the whole batch, as the "
                "Trainer's loss is that of the batch."
            )
        super().__init__(*args, **kwargs)
        self.method = method
        self._sharpness_aware: SharpnessAwareOptimizer | None = None
        self._total_steps: int | None = None
        self._waiting: list[Any] = []

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """Create the base optimizer and its scheduler, and note how many steps there will be."""
        self._total_steps = num_training_steps
        super().create_optimizer_and_scheduler(num_training_steps)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, and warn if the method never acted."""
        output = super().train(*args, **kwargs)
        if self._sharpness_aware is not None:
            self._sharpness_aware.warn_if_idle()
        return output

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        """Wrap the optimizer first, so that the checkpoint's method finds it; the model has its final form by now."""
        if self.is_deepspeed_enabled or getattr(self, "use_apex", False) or "lomo" in str(self.args.optim).lower():
            raise ValueError(f"{type(self).__name__}: DeepSpeed, apex and LOMO take steps that PyTorch does not see.")
        if self.is_fsdp_enabled:
            raise ValueError(f"{type(self).__name__}: FSDP is not supported; leave TrainingArguments(fsdp=) empty.")
        base: Any = self.optimizer
        base = getattr(base, "optimizer", base)  # accelerate's is around it
        model: Any = self.model_wrapped
        self._waiting = []
        self._sharpness_aware = self.method.wrap(base, model=model, total_steps=self._total_steps)
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (file := Path(checkpoint, _FILE)).is_file():
            self._sharpness_aware.load_method_state_dict(torch.load(file, weights_only=True))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save what the method remembers beside them."""
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self._sharpness_aware is not None:
            torch.save(self._sharpness_aware.method_state_dict(), Path(output_dir, _FILE))

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Keep the micro-batch; with the last one of the step, run the passes.

        Returns:
            The loss of all micro-batches with the last, and zero before.
        """
        if self._sharpness_aware is None:
            raise RuntimeError(f"{type(self).__name__}: training_step was called outside of train().")
        self._waiting.append(inputs)
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        batches, self._waiting = self._waiting, []
        step = super().training_step

        def closure() -> Tensor:
            losses = []
            for batch in batches:
                last = batch is batches[-1]
                with nullcontext() if last else self.accelerator.no_sync(model):
                    losses.append(step(model, batch, num_items_in_batch).detach())
            return torch.stack(losses).sum()

        return self._sharpness_aware.backward(closure, scaler=self.accelerator.scaler)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the method's figures with the loss."""
        if self._sharpness_aware is not None and "loss" in logs:
            logs = {**logs, **self._sharpness_aware.metrics}
        super().log(logs, *args, **kwargs)


class SharpnessAwareTrainer(SharpnessAwareMixin, Trainer):
    """Hugging Face's ``Trainer`` with a sharpness-aware method; see `SharpnessAwareMixin`."""
