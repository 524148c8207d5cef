"""The step: the only place where a sharpness-aware method takes one.

`SharpnessAwareOptimizer` wraps any PyTorch optimizer and needs nothing but PyTorch; Composer's side is in
`sam_algos.algorithm` and `sam_algos.trainer_passes`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from sam_algos import tensors
from sam_algos.displacement import Displacement
from sam_algos.names import Names
from sam_algos.parts import Decision, Memory, Parts, Step
from sam_algos.passes import FirstPass, Passes
from sam_algos.wrapper import WrappedOptimizer

__all__ = ["SharpnessAwareOptimizer"]

_REQUIRED: Any = object()


class SharpnessAwareOptimizer(WrappedOptimizer):
    """A base optimizer whose steps follow the sharpness-aware gradient.

    To everything around it, it is the base optimizer: parameter groups, state, hooks and checkpoint are the base
    optimizer's own objects, and its class carries the base optimizer's name, under which Composer stores the
    state. A checkpoint written with a method therefore loads without one, and the other way round.

    Users make one with ``wrap`` of a method, e.g. ``AESAM(rho=0.05).wrap(optimizer, model=model,
    total_steps=1000)``, or by giving the method to Composer's Trainer.

    Args:
        base_optimizer (torch.optim.Optimizer): Takes the actual step, always from the unperturbed weights.
        parts (Parts): When, how and what: see `sam_algos.parts`.
        passes (Passes): How to run the two passes.
        synchronize (bool): Whether data-parallel processes average the first gradient even where no part needs
            it. Default: ``False``, each process climbs by its own gradient (m-sharpness).
        nonfinite (str): What to do with a gradient that is not finite: ``'pass'`` it to the base optimizer, or
            ``'skip'`` the step on all processes, at one more norm and host synchronisation per step.
            Default: ``'pass'``.
        ascent_fraction (float): How much of the batch the first pass of a sharp step sees. Default: ``1.0``.

    Attributes:
        base_optimizer (torch.optim.Optimizer): The wrapped optimizer.
        metrics (dict): The figures of the last step: ``sam/applied`` (1 if the second pass ran),
            ``sam/fraction`` (of the steps taken so far), ``sam/grad_norm`` (of the plain gradient, before any
            clipping), ``sam/nonfinite`` (how many steps so far had a gradient that is not finite: the plain one with
            ``'pass'``, the final one with ``'skip'``), and those of the policy.

    Raises:
        ValueError: If the base optimizer is already sharpness-aware or calls its closure itself, as LBFGS does, or
            a parameter group's ``rho`` is not a finite number >= 0.
    """

    _step_supports_amp_closure = True  # Composer's Trainer then passes a closure, and scales gradients around it

    def __init__(
        self,
        base_optimizer: Optimizer,
        parts: Parts,
        passes: Passes,
        *,
        synchronize: bool = False,
        nonfinite: Literal["pass", "skip"] = "pass",
        ascent_fraction: float = 1.0,
    ) -> None:
        super().__init__(base_optimizer)
        for group in base_optimizer.param_groups:
            self._check_radius(group)
        self._parts = parts
        self._passes = passes
        self._synchronize = synchronize
        self._nonfinite: Literal["pass", "skip"] = nonfinite
        self._ascent_fraction = ascent_fraction
        self._memory: Memory = {"step": 0, "sharp": 0, "nonfinite": 0, "policy": parts.policy.initial()}
        self._displacement = Displacement()
        self._names = Names(passes.model)
        self.metrics: dict[str, float] = {}

    @torch.no_grad()
    def step(self, closure: Callable[..., Any] | None = _REQUIRED) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step.

        Args:
            closure (callable): Zeroes the gradients, runs forward and backward, returns the loss. ``None`` takes
                a step of the base optimizer alone with the gradients that are there; distributed checkpointing
                does so to create the optimizer's state.

        Returns:
            The loss of the pass at the clean weights; None if a pass overflowed and the step was skipped.

        Raises:
            TypeError: If no closure is given.
        """
        if closure is _REQUIRED:
            raise TypeError("A sharpness-aware optimizer needs the closure: optimizer.step(closure).")
        if closure is None:
            return self._base_step_alone()
        closure = torch.enable_grad()(closure)
        step = Step(self._memory["step"], self._passes.progress(self._memory["step"]))
        loss, decision = self._first_pass(step, closure)
        if decision.sharp and self._second_pass(step, closure) is None:
            loss = None
        overflow = loss is None
        remembered = {} if overflow else self._descend(step, decision.sharp)
        nonfinite = not overflow and self._nonfinite == "skip" and not self._is_finite()
        with torch.enable_grad():
            self._passes.finish()
        if nonfinite:
            self._memory["nonfinite"] += 1
        elif not overflow:
            stepped = [p.grad is not None for p in step.params] if remembered else []
            self.base_optimizer.step()
            self._remember(step, decision, remembered, stepped)
        self._report(step, decision)
        return loss

    def _first_pass(self, step: Step, closure: Callable[..., Any]) -> tuple[Any, Decision]:
        """Run the pass at the clean weights, and decide whether the step is sharp; after an overflow it is not."""
        policy, _, descent = self._parts
        decision = None if policy.reads_gradient else policy.decide(self._memory["policy"], step)
        may_be_sharp = decision is None or decision.sharp
        plan = FirstPass(
            synchronize=self._synchronize or policy.reads_gradient or descent.reads_plain or not may_be_sharp,
            repeatable=may_be_sharp,
            fraction=self._ascent_fraction if may_be_sharp else 1.0,
            devices={p.device for group in self.param_groups for p in group["params"]},
        )
        loss = self._passes.first(closure, plan)
        if loss is None:
            return None, Decision(False, {})
        self._observe(step)
        if decision is None:
            decision = policy.decide(self._memory["policy"], step)
        return loss, decision if step.params else decision._replace(sharp=False)  # no gradient to climb by

    def _observe(self, step: Step) -> None:
        """Take in the plain gradient and its norm, before descent, clipping and perturbation overwrite it."""
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        step.observe(params, self._names, self.state)
        _ = step.grad_norm

    def _second_pass(self, step: Step, closure: Callable[..., Any]) -> Any:
        """Run the pass at the perturbed weights; it leaves ``g_s`` on the parameters, and the weights as they were."""
        _, perturbation, descent = self._parts
        step.spare_grads = not descent.reads_plain
        directions, scale = perturbation.ascend(step)
        disposable = [step.spare_grads or d is not g for d, g in zip(directions, step.grads, strict=True)]
        if step.spare_grads:
            step.grads = []
        for p in step.params:
            p.grad = None  # the closure must not zero the buffers that now hold the perturbed weights
        scales = self._scales(step.params, scale)
        with self._displacement(step.params, step.weights, directions, scales, disposable):
            del directions
            return self._passes.second(closure)

    def _descend(self, step: Step, sharp: bool) -> dict[str, list[Tensor]]:
        """Leave on the parameters the gradient for the base optimizer; returns what to remember of it."""
        descent = self._parts.descent
        if sharp:
            return descent.after_sharp(step, tensors.shards([p.grad for p in step.params]))
        descent.after_flat(step)
        return {}

    def _scales(self, params: list[Tensor], scale: Tensor) -> list[Tensor]:
        """``ρ · scale`` for each parameter, with its group's own radius where it has one."""
        default = self._parts.perturbation.rho
        groups = [] if "rho" in self.defaults else self.param_groups  # Adadelta's rho is its own
        own = {id(p): group["rho"] for group in groups if "rho" in group for p in group["params"]}
        if not own:
            return [scale * default] * len(params)
        scaled = {rho: scale * rho for rho in {default, *own.values()}}
        return [scaled[own.get(id(p), default)] for p in params]

    def _is_finite(self) -> bool:
        """Whether the final gradient is finite; the same answer on every process, as that gradient is synchronised."""
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        return math.isfinite(float(tensors.norm(tensors.shards([p.grad for p in params]), params)))

    def _remember(self, step: Step, decision: Decision, buffers: dict[str, list[Tensor]], stepped: list[bool]) -> None:
        """Keep what the parts will need, now that the step has succeeded."""
        # After the base step, and for the parameters that took part in it: an optimizer that finds foreign state on
        # a parameter would not create its own.
        for name, values in buffers.items():
            for p, value, has_state in zip(step.params, values, stepped, strict=True):
                if has_state:
                    self.state[p][name] = tensors.wrap_like(value, p)
        self._memory["policy"] = decision.memory
        self._memory["step"] += 1
        self._memory["sharp"] += int(decision.sharp)

    def _report(self, step: Step, decision: Decision) -> None:
        grad_norm = step.grad_norm_value if step.params else math.nan
        if self._nonfinite == "pass" and step.params and not math.isfinite(grad_norm):
            self._memory["nonfinite"] += 1
        self.metrics = {
            "sam/applied": float(decision.sharp),
            "sam/fraction": self._memory["sharp"] / max(1, self._memory["step"]),
            "sam/grad_norm": grad_norm,
            "sam/nonfinite": float(self._memory["nonfinite"]),
            **{f"sam/{name}": value for name, value in decision.log.items()},
        }
        self._passes.log(self.metrics)

    def _base_step_alone(self) -> None:
        """Step the base optimizer, and create the state that a step with a closure would have created."""
        self.base_optimizer.step()
        for name in self._parts.descent.buffers:
            for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
                self.state[p].setdefault(name, torch.zeros_like(p))

    def method_state_dict(self) -> dict[str, Any]:
        """What the method remembers between steps, in Python numbers; ``state_dict`` holds all the rest.

        A hand-written loop saves it beside ``state_dict()``. Under Composer the algorithm does so.
        """
        return copy.deepcopy(self._memory)

    def load_method_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `method_state_dict` returned; it is passed over if its policy remembered other things."""
        fresh = {"step": 0, "sharp": 0, "nonfinite": 0, "policy": self._parts.policy.initial()}
        policy = state.get("policy")
        if isinstance(policy, dict) and policy.keys() == fresh["policy"].keys():
            self._memory = {key: copy.deepcopy(state.get(key, value)) for key, value in fresh.items()}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; an entry ``rho`` is the group's own radius."""
        self._check_radius(param_group)
        self.base_optimizer.add_param_group(param_group)

    def _check_radius(self, group: dict[str, Any]) -> None:
        rho = group.get("rho", 0.0)
        valid = isinstance(rho, (int, float)) and not isinstance(rho, bool) and 0 <= rho < math.inf
        if not valid and "rho" not in self.defaults:
            raise ValueError(f"Parameter group with rho={rho!r}: rho must be a finite number >= 0.")

    def __repr__(self) -> str:
        """The parts around the base optimizer."""
        return f"{self._parts!r} around {self.base_optimizer!r}"
