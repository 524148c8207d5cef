"""What all named methods share: their common options, and wrapping an optimizer."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import GeneratorType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast

import torch
from torch.optim import Optimizer

from sam_algos.core.options import Fraction, Options, ranges
from sam_algos.core.parts import Descent, Part, Parts, Perturbation, Policy, WholeBatch
from sam_algos.core.passes.closures import ClosurePasses
from sam_algos.core.passes.contract import Passes
from sam_algos.core.refusals import refuse_deepspeed, refuse_fsdp1
from sam_algos.core.samples import AscentFraction
from sam_algos.core.stepping.optimizer import SharpnessAwareOptimizer

if TYPE_CHECKING:
    from sam_algos.trainer.algorithm import WrapsOptimizer
else:
    try:
        import composer.core  # noqa: F401
    except ImportError:  # with PyTorch alone there is no Trainer

        class WrapsOptimizer:
            """Takes the place of Composer's Algorithm."""
    else:
        from sam_algos.trainer.algorithm import WrapsOptimizer

__all__ = ["Method"]

_REPLACEABLE = ("policy", "perturbation", "descent")

_BASE_OPTIONS = frozenset({"params", "base_optimizer", "optimizer", "model", "lr", "momentum", "weight_decay", "betas"})
"""Arguments of optimizers, which other packages pass to the method."""


def _is_trained(value: object) -> bool:
    """Whether an argument is a model, its parameters, an optimizer or an optimizer class."""
    if isinstance(value, list) and value:
        value = value[0]
    is_optimizer = isinstance(value, type) and issubclass(value, Optimizer)
    # Do not iterate over a generator: that would exhaust model.parameters().
    return is_optimizer or isinstance(value, (torch.nn.Module, Optimizer, torch.nn.Parameter, GeneratorType))


_F = TypeVar("_F", bound=Callable[..., Any])


def _with_advice(wrap: _F) -> _F:
    """Explain in the error how to call `Method.wrap`."""
    signature = inspect.signature(wrap)

    @functools.wraps(wrap)
    def checked(*arguments: Any, **named: Any) -> Any:
        usage = "SAM(rho=0.05).wrap(optimizer, model=model)"
        if not (arguments and isinstance(arguments[0], Method)):
            raise TypeError(f"wrap() was called on the class; make a method first: {usage}.")
        try:
            signature.bind(*arguments, **named)
        except TypeError as error:
            name = type(arguments[0]).__name__
            raise TypeError(
                f"{name}.wrap(): {error}. Pass the optimizer first and the rest by name: {usage}; add total_steps= if "
                "a schedule needs it."
            ) from None
        return wrap(*arguments, **named)

    return cast("_F", checked)


@dataclass(frozen=True, repr=False)
class Method(Options, WrapsOptimizer, ABC):
    """Base of every sharpness-aware method: a choice of parts, given to Composer's Trainer or to a hand-written loop.

    If Composer is installed, a method is a ``composer.core.Algorithm``: it runs on :attr:`.Event.INIT` and wraps the
    optimizer there. Without Composer it has only `wrap`.

    Args:
        synchronize (bool): Average the gradients of the ascent over data-parallel processes even if no part needs it.
            By default each process climbs along the gradient of its own samples, which generalises better (the SAM
            paper's m-sharpness, section 4.1) and saves a reduction. Default: ``False``.
        nonfinite (str): What to do with a non-finite gradient. ``'pass'`` hands it to the base optimizer; ``'skip'``
            skips the step on all processes, and costs one more norm and host synchronisation per step. A non-finite
            gradient never enters a policy's statistics. Default: ``'pass'``, as in training without a method.
        ascent_fraction (float): The fraction of each microbatch, its first samples, that the first pass of a sharp
            step sees, in (0, 1]: see `AscentFraction`. Do not use it if samples depend on one another, such as stacked
            pairs, if layers need more samples (GhostBatchNorm's ghost batch), or if a part needs the plain gradient of
            the whole batch. BatchNorm's statistics then cover that fraction only: recompute them after training
            (`sam_algos.recalibrate`). Default: ``1.0``, as in the papers.
        policy (Policy, optional): When a step is sharp; replaces the method's own choice. Default: ``None``.
        perturbation (Perturbation, optional): How the weights climb; replaces the method's own choice, including its
            ``rho``: ``AESAM(perturbation=Adaptive(rho=0.5))`` is an adaptive ASAM. Default: ``None``.
        descent (Descent, optional): Which gradient the base optimizer gets; replaces the method's own choice.
            Default: ``None``.

    Raises:
        TypeError: If an argument is unknown, or belongs to the base optimizer.
        ValueError: If an argument is outside its range, if an argument has no effect because a part replaces it, or if
            two parts exclude each other.
    """

    title: ClassVar[str] = ""  # the paper's name for the method, if it differs from the class's

    synchronize: bool = field(default=False, kw_only=True)
    nonfinite: Literal["pass", "skip"] = field(default="pass", kw_only=True)
    ascent_fraction: Fraction = field(default=1.0, kw_only=True)
    policy: Policy | None = field(default=None, kw_only=True)
    perturbation: Perturbation | None = field(default=None, kw_only=True)
    descent: Descent | None = field(default=None, kw_only=True)

    @classmethod
    def _refuse_misplaced(cls, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
        """Refuse arguments of the base optimizer, which other packages take here, before the options are read."""
        given = [*arguments, *named.values()]
        if any(map(_is_trained, given)) or _BASE_OPTIONS & named.keys() - ranges(cls).keys():
            raise TypeError(
                f"{cls.__name__}() takes the method's options only. Give the parameters, lr and the like to a base "
                f"optimizer, and wrap it: {cls.__name__}(rho=...).wrap("
                "torch.optim.SGD(model.parameters(), lr=0.1), model=model)."
            )
        super()._refuse_misplaced(arguments, named)

    @classmethod
    def _advise(cls, unknown: str, known: list[str]) -> str:
        """Besides similar names, point ``adaptive`` to ASAM."""
        advice = super()._advise(unknown, known)
        return f"the adaptive ball is ASAM(rho=...). {advice}" if unknown == "adaptive" else advice

    @abstractmethod
    def parts(self) -> Parts:
        """The method's choices: when a step is sharp, how the weights climb, which gradient is used, which samples."""

    def composition(self) -> Parts:
        """The method's parts, except where the shared options replace them."""
        parts = self.parts()._replace(**self._given())
        return parts if self.ascent_fraction == 1 else parts._replace(samples=AscentFraction(self.ascent_fraction))

    def _given(self) -> dict[str, Part]:
        """The parts that replace the method's own, by axis."""
        return {axis: part for axis in _REPLACEABLE if (part := getattr(self, axis)) is not None}

    def __post_init__(self) -> None:
        """Check the arguments, and that the parts can be combined."""
        super().__post_init__()
        for option in dataclasses.fields(self):
            self._refuse_without_effect(option.name, option.default)
        if (conflict := self.parts()._replace(**self._given()).conflict()) is not None:
            raise ValueError(f"{type(self).__name__}: {conflict}.")
        if self.ascent_fraction == 1:
            return
        parts, why = self.composition(), None
        if not isinstance(chosen := self.parts().samples, WholeBatch):
            why = f"with {type(chosen).__name__}, which chooses the samples itself"
        if (why := why or parts.samples.conflict(parts)) is not None:
            raise ValueError(
                f"{type(self).__name__}(ascent_fraction={self.ascent_fraction!r}): ascent_fraction must be 1 {why}."
            )

    def _refuse_without_effect(self, name: str, default: Any) -> None:
        """Refuse an option of a part that the caller replaced."""
        value, given = getattr(self, name), self._given()
        if not given or name in given or value == default:
            return
        usual = object.__new__(type(self))  # unchecked: the other options may be invalid without this one
        vars(usual).update(vars(self), **{name: default})
        without, own = usual.parts(), self.parts()
        if own != without and own._replace(**given) == without._replace(**given):
            axis = next(axis for axis in given if getattr(own, axis) != getattr(without, axis))
            raise ValueError(
                f"{type(self).__name__}({name}={value!r}): {name} must be left at its default, {default!r}, with "
                f"{axis}={given[axis]!r}, which takes its place."
            )

    @_with_advice
    def wrap(
        self, optimizer: Optimizer, *, model: torch.nn.Module, total_steps: int | None = None
    ) -> SharpnessAwareOptimizer:
        """Make an optimizer for a hand-written loop.

        Pass ``step(closure)`` a closure that zeroes the gradients, runs forward and backward on all data of the
        step, and returns the loss. Alternatively let the closure only return a vector, the loss of each sample; the
        step then does the rest. Save ``method_state_dict()`` along with ``state_dict()``, the base optimizer's state.

        The first sharp step may run the closure up to three more times to check that it sees the displaced weights.
        These runs are not counted and leave no trace in weights, buffers, random streams and metrics.

        If you clip or scale gradients, or if other code takes the step, call ``backward(closure)`` in place of
        ``loss.backward()``. Then call ``step()`` of this optimizer or of the base optimizer. (Do not clip in the
        closure: the method still needs those gradients to decide and to climb.)::

            loss = optimizer.backward(closure)
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        Args:
            optimizer (torch.optim.Optimizer): The base optimizer.
            model (torch.nn.Module): The module that the closure calls. It must own every parameter of the optimizer.
                With data parallelism give the ``DistributedDataParallel``, not its ``module`` (which works too, but
                synchronises every pass). If the loss has parameters, give a ``torch.nn.ModuleList`` of model and loss.
            total_steps (int, optional): Number of steps of the whole training, not counting skipped ones; methods with
                a schedule need it.

        Returns:
            The wrapped optimizer.

        Raises:
            TypeError: If the arguments do not fit this signature.
            ValueError: If ``total_steps`` is missing or not an integer >= 1, the model does not own the optimizer's
                parameters, or the optimizer cannot be wrapped.
        """
        parts, name = self.composition(), type(self).__name__
        if not isinstance(optimizer, Optimizer):
            raise ValueError(f"{name}.wrap(optimizer={optimizer!r}): optimizer must be a torch.optim.Optimizer.")
        if not isinstance(model, torch.nn.Module):
            raise ValueError(f"{name}.wrap(model={model!r}): model must be a torch.nn.Module.")
        scheduled = parts.reader("reads_progress") is not None
        if total_steps is None and scheduled:
            raise ValueError(
                f"{name}.wrap(total_steps=None): total_steps must be given, as this method's schedule depends on it: "
                "the number of steps of the whole training, an integer >= 1."
            )
        if not (total_steps is None or (type(total_steps) is int and total_steps >= 1)):
            raise ValueError(f"{name}.wrap(total_steps={total_steps!r}): total_steps must be an integer >= 1.")
        refuse_fsdp1(name, model)
        refuse_deepspeed(name, model)
        self._refuse_strangers(optimizer, model)
        return self._wrap(
            optimizer, ClosurePasses(model, total_steps, scheduled=scheduled, selects=parts.samples.selects)
        )

    def _refuse_strangers(self, optimizer: Optimizer, model: torch.nn.Module) -> None:
        """Refuse a model that does not own the optimizer's parameters: BatchNorm elsewhere would be updated twice."""
        owned = set(map(id, model.parameters()))
        params = [p for group in optimizer.param_groups for p in group["params"]]
        if strangers := [p for p in params if id(p) not in owned]:
            raise ValueError(
                f"{type(self).__name__}.wrap(model={type(model).__name__}(...)): model must own every parameter of the "
                f"optimizer; {len(strangers)} of {len(params)} are not in it, the first with shape "
                f"{tuple(strangers[0].shape)}. For several modules, give torch.nn.ModuleList([...])."
            )

    def _wrap(self, optimizer: Optimizer, passes: Passes) -> SharpnessAwareOptimizer:
        return SharpnessAwareOptimizer(
            optimizer, self.composition(), passes, synchronize=self.synchronize, nonfinite=self.nonfinite
        )
