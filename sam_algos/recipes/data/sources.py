"""The data sets that a recipe can name, and the options that all of them have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sam_algos.core.options import UnitInterval
from sam_algos.recipes.data.samples import Part, divide, flip_labels
from sam_algos.recipes.errors import BadArgument


@dataclass(frozen=True)
class Source:
    """A data set: a function of ``train`` and of the options in the recipe.

    Args:
        read (Callable): Gives labelled images or text, from ``augment``, its own options, and which ``part`` is wanted;
            or with a test set of its own, from whether to ``train`` on it.
        samples (int | None): Training samples before any are set aside; None where only the files tell.
        own_test_set (bool): Whether its test set is published, so that validation samples are set aside from the
            training set.
    """

    supplied: ClassVar[tuple[str, ...]] = ("train", "part", "augment")
    """Arguments that are not the recipe's to choose."""

    read: Callable[..., Any]
    samples: int | None
    own_test_set: bool

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        """Those that share its options."""
        return (self.read, *([self._divided] if self.own_test_set else []), self.__call__)

    def __call__(
        self, *, train: bool, augment: bool = True, label_noise: UnitInterval = 0.0, noise_seed: int = 0,
        evaluate: Literal["test", "validation"] = "test",
        **options: Any,
    ) -> Any:  # fmt: skip
        """The samples to train on, or to evaluate on: with label noise only the former."""
        read = self._divided if self.own_test_set else self.read
        data = read(part="train" if train else evaluate, augment=train and augment, **options)
        if label_noise and not train:
            raise BadArgument("label_noise", "is for training data: test labels are clean")
        return flip_labels(data, label_noise, noise_seed)

    def _divided(
        self, *, part: Part, augment: bool, train_subset: int | None = None, validation: int = 0, split_seed: int = 0,
        **options: Any,
    ) -> Any:  # fmt: skip
        """A part of the data: of the published training set, or the published test set."""
        if part == "test":
            return self.read(train=False, augment=False, **options)
        pool = self.read(train=True, augment=augment, **options)
        chosen, aside = divide(pool.labels, validation=validation, train=train_subset, seed=split_seed)
        if part == "validation" and not aside:
            raise BadArgument("evaluate", "there are no validation samples; set some aside with validation, e.g. 2000")
        return pool.among(chosen if part == "train" else aside)


DATASETS: dict[str, Source] = {}
"""The data sets by name."""


def dataset(*, samples: int | None = None, own_test_set: bool = False) -> Callable[[Callable[..., Any]], Source]:
    """Put the function below into `DATASETS`, as a `Source`."""

    def declare(read: Callable[..., Any]) -> Source:
        return DATASETS.setdefault(read.__name__, Source(read, samples, own_test_set))

    return declare
