"""PyTorch Lightning, imported as ``lightning`` or as ``pytorch_lightning``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam_algos.method import Method

if TYPE_CHECKING:
    from sam_algos.core.stepping.optimizer import SharpnessAwareOptimizer

__all__ = ["SharpnessAwareMixin"]

_KEY = "sharpness_aware"
_STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy")
_MANUAL = (
    "Use manual optimization, wrap the optimizer without the mixin, and call optimizer.backward(closure) in "
    "training_step."
)


def _is_lightnings(cls: type) -> bool:
    return cls.__module__.startswith(("lightning.", "pytorch_lightning."))


class SharpnessAwareMixin:
    """Makes a LightningModule with automatic optimization train with its ``method``.

    Write ``class Net(SharpnessAwareMixin, LightningModule)`` and return a base optimizer from ``configure_optimizers``,
    as usual. The Trainer still does clipping, precision, accumulation and checkpoints, on the method's gradient.

    The first pass of a step is the Trainer's own, batch by batch, and its logs and counts are kept. Later passes repeat
    it: they log nothing, and leave no trace in attributes of the module and of callbacks. Hooks around backward run in
    every pass, as they may change gradients. With ``accumulate_grad_batches=k`` the ``k`` batches of a step are kept
    until its end, when the later passes run them again.

    The method's metrics are logged with each step. Checkpoints hold the method's memory under the key
    ``sharpness_aware``. A checkpoint without this key loads too, and the method then starts fresh.
    `docs/frameworks.md` has an example.

    With manual optimization you do not need the mixin: wrap the optimizer, and call its ``backward(closure)``.

    Attributes:
        method (Method): The method, e.g. ``AESAM(rho=0.05)``. Its passes must run on the whole batch.

    Raises:
        TypeError: If a class lists the mixin after ``LightningModule``.
        ValueError: When training begins, if ``method`` is not a method or needs passes on some of the samples, if it
            has a schedule and the number of steps is unknown, if the optimizer cannot be wrapped, if optimization is
            manual, if ``training_step`` takes ``dataloader_iter``, or if the strategy is neither a single device nor
            ``DistributedDataParallel``.
    """

    method: Method
    _sharpness_aware: SharpnessAwareOptimizer | None = None
    _loaded: dict[str, Any] | None = None
    _repeats = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class in which LightningModule would hide the mixin."""
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[: cls.__mro__.index(SharpnessAwareMixin)]
        if any(c.__name__ == "LightningModule" and _is_lightnings(c) for c in before):
            raise TypeError(
                f"class {cls.__name__}: SharpnessAwareMixin must come before the LightningModule, which would hide "
                f"it: class {cls.__name__}(SharpnessAwareMixin, LightningModule)."
            )

    @property
    def trainer(self: Any) -> Any:
        """The Trainer that the module is attached to."""
        return super().trainer  # pyright: ignore[reportAttributeAccessIssue]

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        """Attach the Trainer, and replace its loop now: searches for a batch size or learning rate train early."""
        super(SharpnessAwareMixin, type(self)).trainer.fset(self, trainer)  # pyright: ignore
        if trainer is not None:
            loop = trainer.fit_loop.epoch_loop.automatic_optimization
            if not isinstance(loop, _Closures):
                loop.__class__ = _with_closures(type(loop))

    def on_fit_start(self: Any) -> None:
        """Wrap the optimizer, before the Trainer loads a checkpoint into it."""
        super().on_fit_start()  # pyright: ignore[reportAttributeAccessIssue]
        self._wrap()

    def on_fit_end(self: Any) -> None:
        """Warn if the method never acted."""
        super().on_fit_end()  # pyright: ignore[reportAttributeAccessIssue]
        if self._sharpness_aware is not None:
            self._sharpness_aware.warn_if_idle()

    def on_save_checkpoint(self: Any, checkpoint: dict[str, Any]) -> None:
        """Save the method's memory."""
        super().on_save_checkpoint(checkpoint)  # pyright: ignore[reportAttributeAccessIssue]
        if self._loaded is not None:
            checkpoint[_KEY] = self._loaded
        elif self._sharpness_aware is not None:
            checkpoint[_KEY] = self._sharpness_aware.method_state_dict()

    def on_load_checkpoint(self: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the method's memory for the next step, if training resumes from the checkpoint."""
        super().on_load_checkpoint(checkpoint)  # pyright: ignore[reportAttributeAccessIssue]
        trainer = getattr(self, "_trainer", None)  # None in `load_from_checkpoint`, which loads weights
        if trainer is not None and trainer.state.fn == "fit":
            self._loaded = checkpoint.get(_KEY, {})

    def log(self: Any, *args: Any, **kwargs: Any) -> None:
        """Log, except when a pass is repeated."""
        if not self._repeats:
            super().log(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def print(self: Any, *args: Any, **kwargs: Any) -> None:
        """Print, except when a pass is repeated."""
        if not self._repeats:
            super().print(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def _wrap(self: Any) -> SharpnessAwareOptimizer:
        """Wrap the optimizer in the method."""
        trainer = self.trainer
        method = getattr(self, "method", None)
        if not isinstance(method, Method):
            raise ValueError(
                f"{type(self).__name__}.method={method!r}: method must be a method of sam_algos, e.g. SAM()."
            )
        if (why := _refusal(self, method)) is not None:
            raise ValueError(f"{type(self).__name__}: {why}")
        base = trainer.optimizers[0]
        optimizer = method.wrap(base, model=trainer.strategy.model, total_steps=_total_steps(self, method))
        optimizer.count_once(lambda: trainer.callbacks)
        if self._sharpness_aware is None or self._sharpness_aware.base_optimizer is not base:
            base.register_step_post_hook(self._log_figures)
        self._sharpness_aware = optimizer
        return optimizer

    def _log_figures(self: Any, *_: Any) -> None:
        """Log the method's metrics of the step just taken."""
        if self._current_fx_name == "optimizer_step":
            self.log_dict(self._sharpness_aware.metrics)

    def _ready(self: Any, base: Any) -> SharpnessAwareOptimizer:
        """The wrapped optimizer, with the memory of a loaded checkpoint."""
        optimizer = self._sharpness_aware
        if optimizer is None or optimizer.base_optimizer is not base:
            optimizer = self._wrap()
        if self._loaded is not None:
            optimizer.load_method_state_dict(self._loaded)
            self._loaded = None
        return optimizer


def _refusal(module: Any, method: Method) -> str | None:
    """Why a module cannot train with a method, or None if it can."""
    parts, trainer = method.composition(), module.trainer
    if parts.samples.selects or parts.reader("reads_losses") is not None:
        return f"method={method!r} needs a closure that takes samples. {_MANUAL}"
    if not module.automatic_optimization:
        return f"automatic_optimization is off. {_MANUAL}"
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        return (
            "training_step(dataloader_iter) draws its own batches, and later passes would draw different ones. Define "
            "training_step(batch, batch_idx) instead."
        )
    strategy = next((c for c in type(trainer.strategy).__mro__ if _is_lightnings(c)), type(trainer.strategy)).__name__
    if strategy not in _STRATEGIES:
        return f"the strategy must be one of {', '.join(_STRATEGIES)}; it is {strategy}."
    return None


def _total_steps(module: Any, method: Method) -> int | None:
    """The steps of the whole training, or None if the method does not need them (counting them loads the data).

    Raises:
        ValueError: If the steps cannot be counted.
    """
    if method.composition().reader("reads_progress") is None:
        return None
    trainer, name = module.trainer, type(module).__name__
    callbacks = {type(callback).__name__: callback for callback in trainer.callbacks}
    if "GradientAccumulationScheduler" in callbacks:
        raise ValueError(
            f"{name}: method={method!r} needs the number of steps of the whole training, and "
            "GradientAccumulationScheduler changes that number between epochs. Use "
            "Trainer(accumulate_grad_batches=...)."
        )
    with _without_epoch_of_averaging(trainer, callbacks.get("StochasticWeightAveraging")):
        steps = trainer.estimated_stepping_batches
    if not 1 <= steps < math.inf:
        raise ValueError(
            f"{name}: method={method!r} needs the number of steps of the whole training, which is unknown here. Use "
            "Trainer(max_steps=...), or a data set with a length and Trainer(max_epochs=...)."
        )
    return int(steps)


@contextmanager
def _without_epoch_of_averaging(trainer: Any, averaging: Any) -> Iterator[None]:
    """Leave out the epoch that weight averaging adds for BatchNorm: it takes no steps."""
    loop, epochs = trainer.fit_loop, trainer.fit_loop.max_epochs
    if averaging is not None and getattr(averaging, "_max_epochs", None) == epochs - 1:
        loop.max_epochs -= 1
    try:
        yield
    finally:
        loop.max_epochs = epochs


class _Closures:
    """Lightning's automatic optimization, with closures that run all passes of a step for modules with the mixin."""

    def _make_closure(self: Any, kwargs: Any, optimizer: Any, batch_idx: int) -> Any:
        closure = super()._make_closure(kwargs, optimizer, batch_idx)  # pyright: ignore[reportAttributeAccessIssue]
        module = self.trainer.lightning_module
        return _Closure(module, optimizer, closure) if isinstance(module, SharpnessAwareMixin) else closure

    def __reduce__(self: Any) -> Any:
        """Pickle as the original class, for spawned processes: this class is created at run time."""
        return _new_loop, (type(self).__mro__[2],), self.__dict__


@cache
def _with_closures(kind: type) -> type:
    return type(kind.__name__, (_Closures, kind), {})


def _new_loop(kind: type) -> Any:
    return object.__new__(_with_closures(kind))


class _Closure:
    """Lightning's closure of a batch; the last batch of a step also runs the step's other passes.

    Args:
        module: The module.
        base: The base optimizer.
        closure: Runs the training step and backward.
    """

    def __init__(self, module: Any, base: Any, closure: Any) -> None:
        self._module, self._base, self._closure = module, base, closure
        self._ran = False

    def __call__(self) -> Any:
        """Run the batch's part of the first pass, and with the step's last batch all later passes."""
        trainer, closure = self._module.trainer, self._closure
        if closure._backward_fn is None:
            return closure()  # weight averaging recomputes BatchNorm's statistics, and nothing is trained
        optimizer = self._module._ready(self._base)
        if closure._zero_grad_fn is not None:
            optimizer.zero_grad()  # drops gradients left over from an interrupted epoch
        if trainer.fit_loop._should_accumulate():
            return optimizer.accumulate(self._run)
        return optimizer.backward(self._run, scaler=getattr(trainer.precision_plugin, "scaler", None))

    def consume_result(self) -> Any:
        """The output of the first pass."""
        return self._closure.consume_result()

    def _run(self) -> Any:
        """Run a pass on the batch."""
        if self._ran:
            return self._repeat()
        self._ran = True
        return self._closure()

    def _repeat(self) -> Any:
        module, closure, trainer = self._module, self._closure, self._module.trainer
        result, loggers = closure._result, trainer.loggers
        closure._zero_grad_fn = None  # there is nothing to zero, and Lightning would count the call
        module._repeats, trainer.loggers = True, [_Silence(logger) for logger in loggers]
        try:
            return closure()
        finally:
            module._repeats, trainer.loggers = False, loggers
            closure._result = result


class _Silence:
    """A stand-in for a logger and its attributes: plain values can be read, calls do nothing.

    Args:
        real: The object that it stands for; None if unknown, such as a function's result.
    """

    def __init__(self, real: Any = None) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = None if self._real is None else getattr(self._real, name)
        return value if isinstance(value, _PLAIN) else _Silence(value)

    def __call__(self, *args: Any, **kwargs: Any) -> _Silence:
        return _Silence()

    def __getitem__(self, key: Any) -> _Silence:
        return _Silence()

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __enter__(self) -> _Silence:
        return self

    def __exit__(self, *_: object) -> None:
        pass


_PLAIN = (str, bytes, int, float, bool, Path, list, tuple, dict)
