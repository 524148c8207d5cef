"""PyTorch Lightning, under either of its names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sam_algos.method import Method

if TYPE_CHECKING:
    from sam_algos.core.optimizer import SharpnessAwareOptimizer

__all__ = ["SharpnessAwareMixin"]

_KEY = "sharpness_aware"
_STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy")


def _lightnings(strategy: object) -> str:
    """The class of Lightning that a strategy is of."""
    own = (cls for cls in type(strategy).__mro__ if cls.__module__.startswith(("lightning.", "pytorch_lightning.")))
    return next(own, type(strategy)).__name__


class SharpnessAwareMixin:
    """Makes a LightningModule with automatic optimization train by its ``method``.

    ``class Net(SharpnessAwareMixin, LightningModule)`` returns a base optimizer from ``configure_optimizers``, as ever.
    Clipping, precision and checkpoints are the Trainer's, and act on the method's gradient. What the training step logs
    is that of the first pass; the method's figures are logged with it. The hooks around a training step's backward run
    with every pass. Checkpoints hold what the method remembers under the key ``sharpness_aware``; one without it loads,
    too, and the method then begins. `docs/frameworks.md` has an example.

    With manual optimization the mixin is not needed: wrap the optimizer, and call its ``backward(closure)``.

    Attributes:
        method (Method): The method, e.g. ``AESAM(rho=0.05)``; one whose passes run on the whole batch.

    Raises:
        ValueError: When training begins, if ``method`` is none or needs passes on some of the samples, the optimizer
            cannot be wrapped, optimization is manual, gradients are accumulated (earlier micro-batches are gone when
            the step begins), or the strategy is neither that of a single device nor ``DistributedDataParallel``'s.
    """

    method: Method
    _sharpness_aware: SharpnessAwareOptimizer | None = None
    _loaded: dict[str, Any] | None = None
    _repeats = False

    def on_fit_start(self: Any) -> None:
        """Wrap the optimizer, before the Trainer loads a checkpoint into it."""
        super().on_fit_start()  # pyright: ignore[reportAttributeAccessIssue]
        trainer, name = self.trainer, type(self).__name__
        method = getattr(self, "method", None)
        if not isinstance(method, Method):
            raise ValueError(f"{name}.method={method!r}: method must be one of sam_algos, e.g. SAM().")
        parts = method.composition()
        why = None
        if parts.samples.selects or parts.reader("reads_losses") is not None:
            why = f"method={method!r} needs a closure that takes samples"
        elif not self.automatic_optimization:
            why = "automatic_optimization is off"
        elif trainer.accumulate_grad_batches > 1:
            why = f"with accumulate_grad_batches={trainer.accumulate_grad_batches} earlier batches cannot be repeated"
        if why is not None:
            raise ValueError(
                f"{name}: {why}. Use manual optimization, wrap the optimizer without the mixin, and call "
                "optimizer.backward(closure) in training_step."
            )
        if (strategy := _lightnings(trainer.strategy)) not in _STRATEGIES:
            raise ValueError(f"{name}: the strategy must be one of {', '.join(_STRATEGIES)}, and is {strategy}.")
        steps = trainer.estimated_stepping_batches
        self._sharpness_aware = method.wrap(
            trainer.optimizers[0], model=trainer.strategy.model, total_steps=None if math.isinf(steps) else int(steps)
        )
        if self._loaded is not None:
            self._sharpness_aware.load_method_state_dict(self._loaded)
            self._loaded = None

    def on_fit_end(self: Any) -> None:
        """Warn if the method never acted."""
        super().on_fit_end()  # pyright: ignore[reportAttributeAccessIssue]
        if self._sharpness_aware is not None:
            self._sharpness_aware.warn_if_idle()

    def on_save_checkpoint(self: Any, checkpoint: dict[str, Any]) -> None:
        """Save what the method remembers."""
        super().on_save_checkpoint(checkpoint)  # pyright: ignore[reportAttributeAccessIssue]
        if self._sharpness_aware is not None:
            checkpoint[_KEY] = self._sharpness_aware.method_state_dict()

    def on_load_checkpoint(self: Any, checkpoint: dict[str, Any]) -> None:
        """Keep what the method remembered for `on_fit_start`, if it is training that is resumed."""
        super().on_load_checkpoint(checkpoint)  # pyright: ignore[reportAttributeAccessIssue]
        trainer = getattr(self, "_trainer", None)  # none in `load_from_checkpoint`, which is for the weights
        if trainer is not None and trainer.state.fn == "fit":
            self._loaded = checkpoint.get(_KEY)

    def optimizer_step(
        self: Any, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Hand the Trainer's step a closure that runs all passes."""
        sharpness_aware: SharpnessAwareOptimizer | None = self._sharpness_aware
        if sharpness_aware is None or optimizer_closure is None:
            raise RuntimeError(f"{type(self).__name__}.on_fit_start has to call super().on_fit_start().")
        closure: Any = optimizer_closure
        results: list[Any] = []

        def run() -> Any:
            self._repeats = bool(results)
            try:
                loss = closure()
            finally:
                self._repeats = False
            results.append(closure._result)
            return loss

        def passes() -> Any:
            loss = sharpness_aware.backward(run, scaler=getattr(self.trainer.precision_plugin, "scaler", None))
            closure._result = results[0]  # what callbacks see is the first pass
            return loss

        super().optimizer_step(epoch, batch_idx, optimizer, passes)  # pyright: ignore[reportAttributeAccessIssue]
        self.log_dict(sharpness_aware.metrics)

    def log(self: Any, *args: Any, **kwargs: Any) -> None:
        """Log, but for the repetitions of a pass."""
        if not self._repeats:
            super().log(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
