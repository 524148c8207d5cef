"""PyTorch Lightning, under either of its names."""

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
    """Makes a LightningModule with automatic optimization train by its ``method``.

    ``class Net(SharpnessAwareMixin, LightningModule)`` returns a base optimizer from ``configure_optimizers``, as ever.
    Clipping, precision, accumulation and checkpoints are the Trainer's, and act on the method's gradient.

    The first pass of a step is the Trainer's own, batch after batch, and what it logs and counts stays. Later passes
    repeat it: they log nothing, and leave no trace in attributes of the module and of callbacks. Hooks around backward
    run with every pass, as they may change gradients. With ``accumulate_grad_batches=k`` the ``k`` batches of a step
    are kept until it ends, where later passes run them again.

    The method's figures are logged with each step. Checkpoints hold what the method remembers under the key
    ``sharpness_aware``; one without it loads, too, and the method then begins. `docs/frameworks.md` has an example.

    With manual optimization the mixin is not needed: wrap the optimizer, and call its ``backward(closure)``.

    Attributes:
        method (Method): The method, e.g. ``AESAM(rho=0.05)``; one whose passes run on the whole batch.

    Raises:
        TypeError: If a class has the mixin after ``LightningModule``.
        ValueError: When training begins, if ``method`` is none or needs passes on some of the samples, it has a
            schedule and the number of steps is unknown, the optimizer cannot be wrapped, optimization is manual,
            ``training_step`` takes ``dataloader_iter``, or the strategy is neither that of a single device nor
            ``DistributedDataParallel``'s.
    """

    method: Method
    _sharpness_aware: SharpnessAwareOptimizer | None = None
    _loaded: dict[str, Any] | None = None
    _repeats = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse a class whose LightningModule would hide the mixin."""
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
        """Be attached, before anything trains; what searches for a batch size or a learning rate does so early."""
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
        """Save what the method remembers."""
        super().on_save_checkpoint(checkpoint)  # pyright: ignore[reportAttributeAccessIssue]
        if self._loaded is not None:
            checkpoint[_KEY] = self._loaded
        elif self._sharpness_aware is not None:
            checkpoint[_KEY] = self._sharpness_aware.method_state_dict()

    def on_load_checkpoint(self: Any, checkpoint: dict[str, Any]) -> None:
        """Keep what the method remembered for the next step, if it is training that goes on from there."""
        super().on_load_checkpoint(checkpoint)  # pyright: ignore[reportAttributeAccessIssue]
        trainer = getattr(self, "_trainer", None)  # none in `load_from_checkpoint`, which is for the weights
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
        """Put the method around the optimizer."""
        trainer = self.trainer
        method = getattr(self, "method", None)
        if not isinstance(method, Method):
            raise ValueError(f"{type(self).__name__}.method={method!r}: method must be one of sam_algos, e.g. SAM().")
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
        """Log the method's figures of the step that was taken."""
        if self._current_fx_name == "optimizer_step":
            self.log_dict(self._sharpness_aware.metrics)

    def _ready(self: Any, base: Any) -> SharpnessAwareOptimizer:
        """The optimizer that steps by the method, with what a checkpoint remembered."""
        optimizer = self._sharpness_aware
        if optimizer is None or optimizer.base_optimizer is not base:
            optimizer = self._wrap()
        if self._loaded is not None:
            optimizer.load_method_state_dict(self._loaded)
            self._loaded = None
        return optimizer


def _refusal(module: Any, method: Method) -> str | None:
    """Why a module cannot train by a method."""
    parts, trainer = method.composition(), module.trainer
    if parts.samples.selects or parts.reader("reads_losses") is not None:
        return f"method={method!r} needs a closure that takes samples. {_MANUAL}"
    if not module.automatic_optimization:
        return f"automatic_optimization is off. {_MANUAL}"
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        return (
            "training_step(dataloader_iter) takes its batches itself, and would take others in later passes. Let it "
            "take the batch: training_step(batch, batch_idx)."
        )
    strategy = next((c for c in type(trainer.strategy).__mro__ if _is_lightnings(c)), type(trainer.strategy)).__name__
    if strategy not in _STRATEGIES:
        return f"the strategy must be one of {', '.join(_STRATEGIES)}, and is {strategy}."
    return None


def _total_steps(module: Any, method: Method) -> int | None:
    """The steps of the whole training, if the method asks for them: to count them loads the data.

    Raises:
        ValueError: If they cannot be counted.
    """
    if method.composition().reader("reads_progress") is None:
        return None
    trainer, name = module.trainer, type(module).__name__
    callbacks = {type(callback).__name__: callback for callback in trainer.callbacks}
    if "GradientAccumulationScheduler" in callbacks:
        raise ValueError(
            f"{name}: method={method!r} needs the number of steps of the whole training, and "
            "GradientAccumulationScheduler changes it from epoch to epoch. Use Trainer(accumulate_grad_batches=...)."
        )
    with _without_epoch_of_averaging(trainer, callbacks.get("StochasticWeightAveraging")):
        steps = trainer.estimated_stepping_batches
    if not 1 <= steps < math.inf:
        raise ValueError(
            f"{name}: method={method!r} needs the number of steps of the whole training, which is unknown here. Use "
            "Trainer(max_steps=...), or a data set that has a length with Trainer(max_epochs=...)."
        )
    return int(steps)


@contextmanager
def _without_epoch_of_averaging(trainer: Any, averaging: Any) -> Iterator[None]:
    """Without the epoch that weight averaging adds for BatchNorm, in which nothing is stepped."""
    loop, epochs = trainer.fit_loop, trainer.fit_loop.max_epochs
    if averaging is not None and getattr(averaging, "_max_epochs", None) == epochs - 1:
        loop.max_epochs -= 1
    try:
        yield
    finally:
        loop.max_epochs = epochs


class _Closures:
    """Lightning's automatic optimization, whose closures run a step's passes for modules with the mixin."""

    def _make_closure(self: Any, kwargs: Any, optimizer: Any, batch_idx: int) -> Any:
        closure = super()._make_closure(kwargs, optimizer, batch_idx)  # pyright: ignore[reportAttributeAccessIssue]
        module = self.trainer.lightning_module
        return _Closure(module, optimizer, closure) if isinstance(module, SharpnessAwareMixin) else closure

    def __reduce__(self: Any) -> Any:
        """Pickle as what it was, for processes that are spawned; the class itself is made on the fly."""
        return _new_loop, (type(self).__mro__[2],), self.__dict__


@cache
def _with_closures(kind: type) -> type:
    return type(kind.__name__, (_Closures, kind), {})


def _new_loop(kind: type) -> Any:
    return object.__new__(_with_closures(kind))


class _Closure:
    """Lightning's closure of a batch, which runs the passes of the step that the batch ends.

    Args:
        module: The module.
        base: The base optimizer.
        closure: Runs the training step and backward.
    """

    def __init__(self, module: Any, base: Any, closure: Any) -> None:
        self._module, self._base, self._closure = module, base, closure
        self._ran = False

    def __call__(self) -> Any:
        """Run what Lightning expects of the batch: its part of the first pass, and with the last one all others."""
        trainer, closure = self._module.trainer, self._closure
        if closure._backward_fn is None:
            return closure()  # statistics of BatchNorm are recomputed, and nothing is trained
        optimizer = self._module._ready(self._base)
        if closure._zero_grad_fn is not None:
            optimizer.zero_grad()  # what an epoch that was cut short has accumulated
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
        closure._zero_grad_fn = None  # nothing is there to be zeroed, and Lightning counts it
        module._repeats, trainer.loggers = True, [_Silence(logger) for logger in loggers]
        try:
            return closure()
        finally:
            module._repeats, trainer.loggers = False, loggers
            closure._result = result


class _Silence:
    """A logger, and all that it has: its values can be read, its functions do nothing.

    Args:
        real: What it stands for; None where nobody knows, as for what a function would return.
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
