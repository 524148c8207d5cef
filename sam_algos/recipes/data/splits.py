"""Which samples are trained on, which choices are made on, and which are tested on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from sklearn.model_selection import train_test_split

from sam_algos.recipes.errors import BadArgument

Part = Literal["train", "validation", "test"]
"""What is trained on; what choices are made on, of a method's options or a schedule; what tells how good they were."""


def divide(
    labels: torch.Tensor, *, validation: int, train: int | None, seed: int
) -> tuple[Sequence[int], Sequence[int]]:
    """Draw validation and training samples from a training set, each class in its share.

    Args:
        labels (torch.Tensor): One class per sample, shape ``(n,)``.
        validation (int): Samples that are set aside.
        train (int, optional): Samples to train on. Default: all others.
        seed (int): Of the draw.

    Returns:
        tuple: The indices to train on and those of the validation samples; disjoint.

    Raises:
        ValueError: If there are not so many samples, or too few for the classes.

    Example:
        >>> chosen, validation = divide(torch.arange(8) % 2, validation=2, train=4, seed=0)
        >>> (len(chosen), len(validation), len({*chosen, *validation}))
        (4, 2, 6)
    """
    n = len(labels)
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise BadArgument("split_seed", f"must be an integer in [0, 2**32), got {seed!r}")
    for name, count, least in (("validation", validation, 0), ("train_subset", n if train is None else train, 1)):
        if not least <= count <= n:
            raise BadArgument(name, f"must be in [{least}, {n}], the size of the training set, got {count}")
    if train is not None and validation + train > n:
        raise BadArgument("train_subset", f"must be at most {n - validation} beside {validation} for validation")
    rest, aside = _cut(range(n), labels, validation, seed, "validation")
    others = len(rest) - (len(rest) if train is None else train)
    return _cut(rest, labels, others, seed, "train_subset")[0], aside


def _cut(
    indices: Sequence[int], labels: torch.Tensor, count: int, seed: int, name: str
) -> tuple[Sequence[int], Sequence[int]]:
    """Take ``count`` away, stratified."""
    if count in (0, len(indices)):
        return (indices, []) if count == 0 else ([], indices)
    try:
        kept, taken = train_test_split(indices, test_size=count, stratify=labels[list(indices)], random_state=seed)
    except ValueError as error:
        raise BadArgument(name, f"cannot keep the classes' shares: {error}") from error
    return list(kept), list(taken)
