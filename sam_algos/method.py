"""What every named method has in common: its options, and how it gets around an optimizer."""

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
    except ImportError:  # on PyTorch alone there is no Trainer to give a method to

        class WrapsOptimizer:
            """Stands where Composer's Algorithm would."""
    else:
        from sam_algos.trainer.algorithm import WrapsOptimizer

__all__ = ["Method"]

_REPLACEABLE = ("policy", "perturbation", "descent")

_BASE_OPTIONS = frozenset({"params", "base_optimizer", "optimizer", "model", "lr", "momentum", "weight_decay", "betas"})
"""Arguments of optimizers, which methods of other packages take."""


def _is_trained(value: object) -> bool:
    """Whether an argument is a model, its parameters, or an optimizer or the class of one."""
    if isinstance(value, list) and value:
        value = value[0]
    is_optimizer = isinstance(value, type) and issubclass(value, Optimizer)
    # The generator of model.parameters() must not be used up.
    return is_optimizer or isinstance(value, (torch.nn.Module, Optimizer, torch.nn.Parameter, GeneratorType))


_F = TypeVar("_F", bound=Callable[..., Any])


def _with_advice(wrap: _F) -> _F:
    """Say how `Method.wrap` is called where its arguments do not fit."""
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
                f"{name}.wrap(): {error}. It takes the optimizer, and the rest by name: {usage}; total_steps= too, "
                "where a schedule needs it."
            ) from None
        return wrap(*arguments, **named)

    return cast("_F", checked)


@dataclass(frozen=True, repr=False)
class Method(Options, WrapsOptimizer, ABC):
    """Base of every sharpness-aware method: a choice of parts, given to Composer's Trainer or to a hand-written loop.

    Where Composer is installed it is a ``composer.core.Algorithm``, which runs on :attr:`.Event.INIT` and wraps the
    optimizer there. Without Composer it has `wrap` only.

    Args:
        synchronize (bool): Average the gradients of the ascent over data-parallel processes even where no part needs
            it. Otherwise each process climbs by the gradient of its own samples, which generalises better (the SAM
            paper's m-sharpness, section 4.1) and saves a reduction. Default: ``False``.
        nonfinite (str): A gradient that is not finite is handed to the base optimizer (``'pass'``), or the step
            is skipped on all processes (``'skip'``) at one more norm and host synchronisation per step. It never
            enters a policy's statistics. Default: ``'pass'``, as training without a method does.
        ascent_fraction (float): The fraction of each microbatch, its first samples, that the first pass of a sharp
            step sees, in (0, 1]: see `AscentFraction`. Not for samples that depend on one another, such as stacked
            pairs, nor with layers that need more samples (GhostBatchNorm's ghost batch), nor with parts that need the
            plain gradient of the whole batch. BatchNorm's statistics are then those of that fraction, and better
            gathered anew after training (`sam_algos.recalibrate`). Default: ``1.0``, as the papers do.
        policy (Policy, optional): When a step is sharp, in place of the method's own choice. Default: ``None``.
        perturbation (Perturbation, optional): How the weights climb, in place of the method's own choice, its ``rho``
            included: ``AESAM(perturbation=Adaptive(rho=0.5))`` is an adaptive ASAM. Default: ``None``.
        descent (Descent, optional): What gradient the base optimizer gets, in place of the method's own choice.
            Default: ``None``.

    Raises:
        TypeError: If an argument is unknown, or the base optimizer's.
        ValueError: If an argument is outside its range or has no effect beside a part that takes its place, or two
            parts exclude one another.
    """

    title: ClassVar[str] = ""  # the paper's name of the method, where it is not the class's

    synchronize: bool = field(default=False, kw_only=True)
    nonfinite: Literal["pass", "skip"] = field(default="pass", kw_only=True)
    ascent_fraction: Fraction = field(default=1.0, kw_only=True)
    policy: Policy | None = field(default=None, kw_only=True)
    perturbation: Perturbation | None = field(default=None, kw_only=True)
    descent: Descent | None = field(default=None, kw_only=True)

    @classmethod
    def _refuse_misplaced(cls, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
        """Refuse what belongs to the base optimizer, as other packages take it here, before the options are read."""
        given = [*arguments, *named.values()]
        if any(map(_is_trained, given)) or _BASE_OPTIONS & named.keys() - ranges(cls).keys():
            raise TypeError(
                f"{cls.__name__}() takes the method's options only, and is then put around a base optimizer of your "
                f"making, which has the parameters, lr and the like: {cls.__name__}(rho=...).wrap("
                "torch.optim.SGD(model.parameters(), lr=0.1), model=model)."
            )
        super()._refuse_misplaced(arguments, named)

    @classmethod
    def _advise(cls, unknown: str, known: list[str]) -> str:
        """Besides what is near: the adaptive ball is a method of its own."""
        advice = super()._advise(unknown, known)
        return f"the adaptive ball is ASAM(rho=...). {advice}" if unknown == "adaptive" else advice

    @abstractmethod
    def parts(self) -> Parts:
        """When, how, what and on which samples: the choices that this method is."""

    def composition(self) -> Parts:
        """The parts, with those in their place that the shared options choose."""
        parts = self.parts()._replace(**self._given())
        return parts if self.ascent_fraction == 1 else parts._replace(samples=AscentFraction(self.ascent_fraction))

    def _given(self) -> dict[str, Part]:
        """The parts given in place of the method's own, by axis."""
        return {axis: part for axis in _REPLACEABLE if (part := getattr(self, axis)) is not None}

    def __post_init__(self) -> None:
        """Check the arguments, and that their parts can be combined."""
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
        """Refuse an option of a part that another one takes the place of."""
        value, given = getattr(self, name), self._given()
        if not given or name in given or value == default:
            return
        usual = object.__new__(type(self))  # unchecked: with this option alone at its default it may make no sense
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

        Its ``step(closure)`` wants a closure that zeroes the gradients, runs forward and backward on all that the step
        is about, and returns the loss; or one that returns a vector, the loss of each sample, and leaves the rest to
        the step. Save ``method_state_dict()`` beside ``state_dict()``, which is the base optimizer's.

        The first sharp step may run the closure up to three more times, uncounted and without a trace in weights,
        buffers, random streams and metrics, to see that it sees the displaced weights.

        Where gradients are clipped or scaled, or something else takes the step, ``backward(closure)`` stands for
        ``loss.backward()``, and the step follows on its own: of this optimizer or of the base optimizer. (In the
        closure it would be too early to clip: its gradients decide and climb.)::

            loss = optimizer.backward(closure)
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        Args:
            optimizer (torch.optim.Optimizer): The base optimizer.
            model (torch.nn.Module): What the closure calls, and owns every parameter of the optimizer: with data
                parallelism the ``DistributedDataParallel``, not its ``module`` (which works too, but synchronises every
                pass); a model and a loss with parameters of its own as a ``torch.nn.ModuleList`` of both.
            total_steps (int, optional): Steps of the whole training, not counting those that are skipped; methods
                with a schedule need it.

        Returns:
            The wrapped optimizer.

        Raises:
            TypeError: If it is called in another way.
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
                f"{name}.wrap(total_steps=None): this method's schedule "
                "needs the number of steps of the whole training, an integer >= 1."
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
        """Refuse a model whose passes are not those of the optimizer's parameters: BatchNorm would count twice."""
        owned = set(map(id, model.parameters()))
        params = [p for group in optimizer.param_groups for p in group["params"]]
        if strangers := [p for p in params if id(p) not in owned]:
            raise ValueError(
                f"{type(self).__name__}.wrap(model={type(model).__name__}(...)): model must own every parameter of the "
                f"optimizer; {len(strangers)} of {len(params)} are not in it, the first of shape "
                f"{tuple(strangers[0].shape)}. For several modules give torch.nn.ModuleList([...])."
            )

    def _wrap(self, optimizer: Optimizer, passes: Passes) -> SharpnessAwareOptimizer:
        return SharpnessAwareOptimizer(
            optimizer, self.composition(), passes, synchronize=self.synchronize, nonfinite=self.nonfinite
        )
