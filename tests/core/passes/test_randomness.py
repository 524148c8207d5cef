"""The global random streams are recorded and put back exactly, whoever drew from them in between."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from sam_algos.core.passes import randomness as streams
from sam_algos.core.passes.randomness import RandomStreams


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    state = np.random.get_state()
    yield
    np.random.set_state(state)


def drawn() -> tuple[Any, ...]:
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))


DRAWS: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "one uniform number": np.random.rand,
    "one normal number, another in reserve": np.random.randn,
    "two normal numbers": lambda: np.random.randn(2),
    "three normal numbers": lambda: np.random.randn(3),
    "so many that the key is made anew": lambda: np.random.rand(700),
    "an integer": lambda: np.random.randint(9),
    "a new seed": lambda: np.random.seed(11),
}


# What is to be put back: nothing, a number in reserve, a key made anew, all of it.
BETWEEN = ("nothing", "one normal number, another in reserve", "so many that the key is made anew", "a new seed")


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("before", DRAWS)
def test_streams_go_on_from_where_they_were_recorded(before: str, between: str) -> None:
    """NumPy's is not read again where its memory is as it was; a normal number may be held in reserve beside it."""
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    for _ in range(3):
        DRAWS[before]()
        recorded = RandomStreams.record([torch.device("cpu")])
        expected = drawn()
        DRAWS[between]()
        recorded.restore()
        assert drawn() == expected
        recorded.restore()
        DRAWS[between]()
        recorded.restore()
        assert drawn() == expected


def test_the_normal_number_in_reserve_is_put_back_too() -> None:
    np.random.seed(1)
    np.random.randn()  # the second of a pair is in reserve
    RandomStreams.record([])
    recorded = RandomStreams.record([])
    reserve = np.random.randn()  # uses it, and leaves the generator's memory as it was
    assert np.random.get_state()[3] == 0
    recorded.restore()
    assert np.random.randn() == reserve


def test_a_stream_is_read_and_written_only_where_somebody_drew() -> None:
    generator, calls = random.Random(1), []
    stream = streams._Twister(
        memory=lambda: repr(generator.getstate()[1]).encode(),
        read=lambda: calls.append("read") or generator.getstate(),
        write=lambda state: calls.append("write") or generator.setstate(state),
        holds_reserve=lambda state: state[2] is not None,
    )
    first = stream.record()
    assert stream.record() is first
    stream.restore(first)
    assert calls == ["read"]
    expected = generator.random()
    stream.restore(first)
    assert generator.random() == expected
    assert stream.record() is not first
    assert calls == ["read", "write", "read"]
    generator.gauss(0, 1)  # one of a pair, the other is in reserve, which the memory does not show
    reserved = stream.record()
    expected = generator.gauss(0, 1)
    stream.restore(reserved)
    assert generator.gauss(0, 1) == expected


def test_a_bit_generator_of_another_kind_is_put_back_too() -> None:
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(np.random.PCG64(3))
    try:
        recorded = RandomStreams.record([])
        expected = np.random.rand(3).tolist()
        recorded.restore()
        assert np.random.rand(3).tolist() == expected
    finally:
        np.random.set_bit_generator(before)
