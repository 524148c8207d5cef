"""An optimizer around another, which to the rest of the program is that other one."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["WrappedOptimizer"]

_ELSEWHERE = ("first_step", "second_step", "ascent_step", "descent_step", "perturb_weights", "unperturb")
"""Halves of a step in other packages of sharpness-aware methods."""


class WrappedOptimizer(Optimizer):
    """Base of an optimizer that takes its steps through another.

    Parameter groups, state, defaults, hooks and checkpoint are the base optimizer's own objects, found anew at each
    access, as loading a checkpoint or sharding may rebind them. The class carries the base optimizer's name:
    Composer stores and finds an optimizer's state under the name of its class.

    Args:
        base_optimizer (torch.optim.Optimizer): The optimizer to wrap.

    Raises:
        ValueError: If it is wrapped already, or calls its closure itself, as LBFGS does.
    """

    def __new__(cls, base_optimizer: Optimizer, *args: Any, **kwargs: Any) -> Self:
        """Make an instance of a subclass that carries the base optimizer's name."""
        base = type(base_optimizer)
        named: Any = type(base.__name__, (cls,), {"__qualname__": base.__qualname__, "__doc__": cls.__doc__})
        return object.__new__(named)

    def __init__(self, base_optimizer: Optimizer) -> None:
        if isinstance(base_optimizer, WrappedOptimizer):
            raise ValueError(
                f"This {type(base_optimizer).__name__} is already sharpness-aware; wrap its base_optimizer instead."
            )
        closure = inspect.signature(base_optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ValueError(
                f"{type(base_optimizer).__name__} evaluates the closure itself; a sharpness-aware step needs an "
                "optimizer whose step() only uses the gradients, such as SGD or AdamW."
            )
        # Optimizer.__init__ is not called: it would make parameter groups and state of its own.
        self.base_optimizer = base_optimizer

    def __getattr__(self, name: str) -> Any:
        """Answer for whatever is not defined here with the base optimizer's attribute."""
        if name == "base_optimizer":  # not set yet, as while unpickling
            raise AttributeError(name)
        try:
            return getattr(self.base_optimizer, name)
        except AttributeError as error:
            if name not in _ELSEWHERE:
                raise
            raise AttributeError(
                f"{error}: a sharpness-aware step is one call, optimizer.step(closure), whose closure runs forward and "
                "backward and returns the loss; it is called again at the displaced weights. Where something else "
                "takes the step: optimizer.backward(closure), then optimizer.step().",
                name=name,
                obj=self,
            ) from None

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The base optimizer's parameter groups."""
        return self.base_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Give the base optimizer others."""
        self.base_optimizer.param_groups = groups

    @property
    def state(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The base optimizer's state."""
        return self.base_optimizer.state

    @state.setter
    def state(self, state: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Give the base optimizer others."""
        self.base_optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The base optimizer's defaults."""
        return self.base_optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        """Give the base optimizer others."""
        self.base_optimizer.defaults = defaults

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the base optimizer's state."""
        self.base_optimizer.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer."""
        self.base_optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the gradients of the base optimizer's parameters."""
        self.base_optimizer.zero_grad(set_to_none=set_to_none)

    def __reduce__(self) -> Any:
        """Pickle as a base optimizer and what was put around it; the class itself is made on the fly."""
        # Not `step`, where a scheduler has put its own counting one.
        attributes = {key: value for key, value in self.__dict__.items() if key != "step"}
        return _rebuild, (type(self).__mro__[1], self.base_optimizer), attributes

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the attributes over; the base optimizer's hooks stay its own."""
        self.__dict__.update(state)


def _rebuild(cls: type[WrappedOptimizer], base: Optimizer) -> WrappedOptimizer:
    return cls.__new__(cls, base)
