"""What a model calls its parameters, and which layers they belong to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

__all__ = ["Name", "Names"]


class Name(NamedTuple):
    """Where a parameter stands in a model: its name there, empty for one that is not in it, and its layer."""

    name: str
    layer: nn.Module | None


class Names:
    """Where parameters stand in a model; it is searched when other parameters are asked for than the last time.

    Args:
        model: Gives the model.
    """

    def __init__(self, model: Callable[[], nn.Module]) -> None:
        self._model = model
        self._params: list[Tensor] = []
        self._names: list[Name] = []

    def __call__(self, params: Sequence[Tensor]) -> list[Name]:
        """The place of each."""
        if list(map(id, params)) != list(map(id, self._params)):
            found: dict[int, Name] = {}
            for prefix, layer in self._model().named_modules():
                for name, p in layer.named_parameters(prefix, recurse=False):
                    found.setdefault(id(p), Name(name, layer))
            self._params = list(params)
            self._names = [found.get(id(p), Name("", None)) for p in params]
        return self._names
