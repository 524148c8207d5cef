"""What every registered method is as an object: options that cannot change, a repr, a method card."""

from __future__ import annotations

import copy
import dataclasses
import doctest
import importlib
import inspect
import pickle
import re

import pytest

import sam_algos
from sam_algos import AESAM, METHODS, SAM, Method
from tests.cases import each_method

each_class = pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)


@each_method
def test_repr_evaluates_back_to_an_equal_method(method: Method) -> None:
    again = eval(repr(method), vars(sam_algos) | {name: getattr(sam_algos, name) for name in sam_algos.__all__})
    assert again == method
    assert repr(again) == repr(method)


def test_repr_shows_shared_options_where_they_differ() -> None:
    assert "nonfinite" not in repr(SAM())
    assert repr(SAM(nonfinite="skip")).endswith("nonfinite='skip')")


@each_class
def test_equal_methods_have_equal_hashes(cls: type[Method]) -> None:
    method = cls()
    other = dataclasses.replace(method, nonfinite="skip")
    assert copy.deepcopy(method) == method
    assert hash(copy.deepcopy(method)) == hash(method)
    assert other != method
    assert len({method, copy.deepcopy(method), other}) == 2


@each_class
def test_pickles(cls: type[Method]) -> None:
    method = cls()
    assert pickle.loads(pickle.dumps(method)) == method


def test_is_frozen() -> None:
    """And so is every method: Python allows no other subclass of a frozen dataclass."""
    method = AESAM()
    for field in dataclasses.fields(method):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, None)


@each_class
def test_overrides_nothing_but_its_parts(cls: type[Method]) -> None:
    """So how a method is wrapped, matched and applied is tested with a few of them."""
    assert cls.__bases__ == (Method,)
    shared = {name for name in dir(Method) if not name.startswith(("__", "_abc"))} | {"__new__", "__repr__"}
    for name in shared - {"parts", "title"}:
        assert inspect.getattr_static(cls, name) is inspect.getattr_static(Method, name), name
    added = set(vars(cls)) - set(dir(Method)) - {field.name for field in dataclasses.fields(cls)}
    assert [name for name in added if not name.startswith("__")] == []


@each_class
def test_docstring_is_a_method_card(cls: type[Method]) -> None:
    card = cls.__doc__ or ""
    headings = ["**Idea.**", "**Equation.**", "**Cost.**", "**Use it**", "Args:", "Raises:", "Example:"]
    places = [card.find(heading) for heading in headings]
    assert -1 not in places
    assert places == sorted(places)
    assert re.search(r"<https://\S+>`_", card), "a link to the paper"


@each_class
def test_card_documents_every_argument_of_its_own_with_its_default(cls: type[Method]) -> None:
    arguments = (cls.__doc__ or "").split("Args:")[1].split("Raises:")[0]
    described = re.split(r"\n        (?=\w+ \()", arguments)[1:]
    shared = {field.name for field in dataclasses.fields(Method)}
    fields = [field for field in dataclasses.fields(cls) if field.init and field.name not in shared]
    assert [text.split(" ")[0] for text in described] == [field.name for field in fields]
    for text, field in zip(described, fields, strict=True):
        default = re.search(r"Default:\s+``([^`]+)``", text)
        assert default, text
        assert eval(default[1], {}) == field.default, text


@each_class
def test_example_of_the_card_runs(cls: type[Method]) -> None:
    home = vars(importlib.import_module(cls.__module__))
    test = doctest.DocTestParser().get_doctest(cls.__doc__ or "", dict(home), cls.__name__, None, 0)
    assert len(test.examples) > 1
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0


@each_class
def test_is_exported_by_the_package(cls: type[Method]) -> None:
    assert cls.__name__ in sam_algos.__all__
    assert getattr(sam_algos, cls.__name__) is cls
