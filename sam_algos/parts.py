"""The contracts of the parts that a sharpness-aware method is composed of.

A method is a choice on independent axes:

===============  ==========================================================  ================================
part             question                                                    examples
===============  ==========================================================  ================================
`Policy`         WHEN is the sharpness-aware gradient worth a second pass?    `Interval`, `GradientNorm`
`Perturbation`   HOW do the weights climb?                                   `PNorm`, `Adaptive`
`Descent`        WHAT gradient goes to the base optimizer?                    `SharpGradient`, `Reuse`
===============  ==========================================================  ================================

One step of training (`sam_algos.optimizer.SharpnessAwareOptimizer.step`) is then, for weights ``w``::

    g = gradient at w                              # first pass
    if policy says so:
        ε = ρ · scale · direction                  # perturbation
        g_s = gradient at w + ε                    # second pass, on the same batch and random draws
        gradient for the optimizer = descent(g, g_s)
    else:
        gradient for the optimizer = descent(g)
    base optimizer steps from w

A part is a frozen dataclass: it holds options and nothing else. What it must remember between steps it returns,
and the optimizer keeps: scalars of the policy in a dictionary of Python numbers, tensors of the descent beside
the base optimizer's own state of each parameter. Both are kept only if the step succeeds, so an exception or an
overflow leaves no trace, and one part may serve any number of runs.

A part declares what it needs as class attributes, and the loop derives from them which passes run, whether the
first is synchronised between processes, and what must be stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sam_algos import tensors
from sam_algos.names import Names
from sam_algos.options import Options, Positive

__all__ = ["Ascent", "Decision", "Descent", "Memory", "Parts", "Perturbation", "Policy", "Step"]

Memory = dict[str, Any]
"""What a policy remembers: Python numbers by name, equal on all ranks."""


class Step:
    """What a part may see of the step that is being taken.

    The lists are aligned: entry ``i`` of each belongs to ``params[i]``. With sharded parameters they hold this
    rank's shards, while `norm` and `dot` are those of the whole vector.

    Attributes:
        index: Steps taken before this one, from 0.
        progress: The share of training that is done, ``t / T`` in [0, 1]; None where ``T`` is unknown.
        params: The parameters that received a gradient in the first pass.
        weights: Their values ``w``.
        grads: The plain gradient ``g`` at ``w`` of the samples that the first pass saw, before any gradient clipping.
        spare_grads: Whether nothing needs ``grads`` after the ascent, so that a perturbation may write into them.
    """

    def __init__(self, index: int, progress: float | None) -> None:
        self.index = index
        self.progress = progress
        self.params: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.grads: list[Tensor] = []
        self.spare_grads = False
        self._names = Names(nn.Module)
        self._state: Mapping[Tensor, Memory] = {}

    def observe(self, params: Sequence[Tensor], names: Names, state: Mapping[Tensor, Memory]) -> None:
        """Take in the gradients that the first pass left on ``params``.

        Args:
            params: Those parameters that have a gradient.
            names: Of all parameters.
            state: The base optimizer's state of each parameter.

        Raises:
            ValueError: If a gradient is sparse; a norm over the whole model is not defined here for it.
        """
        self._names, self._state = names, state
        self.params = list(params)
        grads: list[Any] = [p.grad for p in params]  # kept, as Python makes a tensor's object anew when it is asked for
        layouts = [g.layout for g in grads]
        if unfit := set(layouts) - {torch.strided}:
            layout = unfit.pop()
            raise ValueError(
                f"Parameter {self.names[layouts.index(layout)]!r} has a {layout} gradient; sharpness-aware steps need "
                "dense ones. Build the embedding with sparse=False."
            )
        tensors.own_gradients_(params)
        self.weights = tensors.shards([p.data for p in params])
        self.grads = tensors.shards([p.grad for p in params])

    @cached_property
    def grad_norm(self) -> Tensor:
        """``‖g‖`` over all parameters; a scalar tensor on the gradients' device."""
        norm = self.norm(self.grads)
        self._grad_norm_on_host = tensors.HostValue(norm)
        return norm

    @cached_property
    def grad_norm_value(self) -> float:
        """``‖g‖`` as a Python number: the one host synchronisation of a step that asks for it early."""
        _ = self.grad_norm
        return float(self._grad_norm_on_host)

    @property
    def names(self) -> list[str]:
        """The parameters' names in the model, empty for one that is not in it."""
        return self._names(self.params)

    def norm(self, values: Sequence[Tensor]) -> Tensor:
        """``‖values‖`` as one vector, global over shards; a scalar tensor."""
        return tensors.norm(values, self.params)

    def dot(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """``⟨a, b⟩`` as one vector, global over shards; a scalar tensor."""
        return tensors.dot(a, b, self.params)

    def recall(self, buffer: str) -> list[Tensor | None]:
        """The tensors that a `Descent` has remembered under ``buffer``, None where there is none yet."""
        remembered = (self._state[p].get(buffer) if p in self._state else None for p in self.params)
        return [None if r is None else tensors.local(r) for r in remembered]


class Decision(NamedTuple):
    """A policy's answer for one step.

    Attributes:
        sharp: Whether the second pass runs.
        memory: What the policy will remember if the step succeeds.
        log: Figures to log with the step, by name.
    """

    sharp: bool
    memory: Memory
    log: dict[str, float] = {}  # noqa: RUF012


class Policy(Options, ABC):
    """WHEN a step is sharpness-aware.

    Attributes:
        reads_gradient: Whether the decision needs the plain gradient of the whole batch. The first pass of every
            step then sees all of it and is synchronised between processes, and its norm is brought to the host.
        reads_progress: Whether the decision needs the total number of steps.
    """

    reads_gradient: ClassVar[bool] = False
    reads_progress: ClassVar[bool] = False

    def initial(self) -> Memory:
        """What the policy remembers before the first step."""
        return {}

    @abstractmethod
    def decide(self, memory: Memory, step: Step) -> Decision:
        """Decide for ``step``, given what was remembered after the last successful one."""


class Ascent(NamedTuple):
    """A perturbation of unit radius: ``ε = ρ · scale · directions``.

    Attributes:
        directions: One tensor like each of ``step.params``; may be ``step.grads`` itself.
        scale: A scalar tensor, left on its device.
    """

    directions: Sequence[Tensor]
    scale: Tensor


@dataclass(frozen=True, repr=False)
class Perturbation(Options, ABC):
    """HOW the weights climb: ``ε`` in a ball of radius ``rho``.

    A parameter group of the base optimizer that has an entry ``rho`` uses that radius instead.

    Args:
        rho (float): Radius ``ρ`` of the perturbation.
    """

    rho: Positive = 0.05

    @abstractmethod
    def ascend(self, step: Step) -> Ascent:
        """The perturbation of unit radius, from ``step.grads`` and ``step.weights``.

        It writes to neither, except to the gradients where ``step.spare_grads``.
        """


class Descent(Options, ABC):
    """WHAT gradient goes to the base optimizer.

    Attributes:
        reads_plain: Whether a sharp step needs the plain gradient beside the sharp one: it is then kept through
            the second pass (one copy of the parameters), and the first pass sees the whole batch and is synchronised
            between processes.
        buffers: Names of the tensors it remembers for each parameter. They live in the base optimizer's state,
            and so in its checkpoint.
    """

    reads_plain: ClassVar[bool] = False
    buffers: ClassVar[tuple[str, ...]] = ()

    def after_sharp(self, step: Step, sharp: Sequence[Tensor | None]) -> dict[str, list[Tensor]]:
        """Turn ``g_s`` into the gradient for the optimizer, in place.

        Args:
            step: The step; its ``grads`` hold the plain gradient if ``reads_plain``, and may be overwritten.
            sharp: The gradient ``g_s`` at ``w + ε``, None for a parameter that the second pass did not use.

        Returns:
            What to remember for each of ``step.params``, by buffer name.
        """
        return {}

    def after_flat(self, step: Step) -> None:
        """Turn ``step.grads`` into the gradient for the optimizer, in place."""


class Parts(NamedTuple):
    """One choice on each axis."""

    policy: Policy
    perturbation: Perturbation
    descent: Descent
