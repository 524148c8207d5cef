"""The names that a model gives its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

__all__ = ["Names"]


class Names:
    """The names of parameters in a model; it is searched when other parameters are asked for than the last time.

    Args:
        model: Gives the model.
    """

    def __init__(self, model: Callable[[], nn.Module]) -> None:
        self._model = model
        self._params: list[Tensor] = []
        self._names: list[str] = []

    def __call__(self, params: Sequence[Tensor]) -> list[str]:
        """The name of each, empty for one that is not in the model."""
        if list(map(id, params)) != list(map(id, self._params)):
            found = {id(p): name for name, p in self._model().named_parameters()}
            self._params, self._names = list(params), [found.get(id(p), "") for p in params]
        return self._names
