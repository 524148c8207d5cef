"""The JSON Schema of a recipe's file, by which editors complete and check what is written."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from typing import Any

from sam_algos.recipes import schema
from sam_algos.recipes.naming.arguments import Argument, Form, describe
from sam_algos.recipes.naming.catalogue import catalogue
from sam_algos.recipes.naming.names import spelling
from sam_algos.recipes.reading.check import KEYS
from sam_algos.recipes.reading.load import Comparison

_Schema = dict[str, Any]

_FILLED_IN = {"type": "string", "pattern": r"\$\{"}
"""An interpolation, which may stand for any value."""

_MEANINGS = dict(re.findall(r"^    (\w+) \([^)]*\): (.*(?:\n {8}.*)*)", schema.describe(), re.MULTILINE))


def json_schema() -> _Schema:
    """The schema, in draft 7. A file may leave any key to its base, so none is required."""
    groups = catalogue().groups
    arguments = {**describe(schema.FileKeys).arguments, **KEYS}
    keys = {key: {**_any_of(_values(argument)), "description": _meaning(key)} for key, argument in arguments.items()}
    for key, group in {**schema.SECTIONS, **schema.COLLECTIONS}.items():
        keys[key] = {**_any_of([{"$ref": f"#/$defs/{group}"}, {"type": "null"}]), "description": _meaning(key)}
    keys["dataloader"] = {**_mapping(groups["dataloader"]["dataloader"]), "description": _meaning("dataloader")}
    row = {key: value for key, value in keys.items() if key not in schema.FILE_KEYS}
    keys["compare"] = {**_mapping(describe(Comparison, ["first_seed"])), "description": _meaning("compare")}
    keys["methods"]["additionalProperties"] = _any_of([{"$ref": "#/$defs/row"}, {"type": "null"}])
    parts = {each.part for forms in groups.values() for form in forms.values() for each in form.arguments.values()}
    sections = {*schema.SECTIONS.values(), *parts} - {None}
    definitions = {group: _section(group, groups[group]) for group in sorted(map(str, sections))}
    definitions |= {group: _collection(group, groups[group]) for group in schema.COLLECTIONS.values()}
    definitions["row"] = {"type": "object", "properties": row, "additionalProperties": False}
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "A recipe of sam_algos"}
    return {**head, "type": "object", "properties": keys, "additionalProperties": False, "$defs": definitions}


def _meaning(key: str) -> str:
    return " ".join(_MEANINGS[key].split())


def _any_of(options: Iterable[Mapping[str, Any]]) -> _Schema:
    return {"anyOf": [*options, _FILLED_IN]}


def _values(argument: Argument) -> list[Mapping[str, Any]]:
    return [option for option in argument.options if "not" not in option]


def _mapping(form: Form, **others: Any) -> _Schema:
    """What maps the arguments of a form to their values."""
    arguments = {name: {**_any_of(_values(each)), **_default(each)} for name, each in form.arguments.items()}
    return {"type": "object", "properties": {**arguments, **others}, "additionalProperties": form.takes_others}


def _default(argument: Argument) -> _Schema:
    try:
        value = ast.literal_eval(argument.default or "...")
    except ValueError:  # infinity
        value = ...
    return {} if value in (..., schema.REQUIRED) else {"default": value}


def _section(group: str, forms: Mapping[str, Form]) -> _Schema:
    """A name and its arguments: those that go with the name."""
    known = {_pattern(name, group): form for name, form in forms.items()}
    name = _any_of([{"enum": sorted(forms)}, *({"type": "string", "pattern": pattern} for pattern in known)])
    cases = [
        {
            "if": {"properties": {"name": {"type": "string", "pattern": pattern}}, "required": ["name"]},
            "then": _mapping(form, name={}),
        }
        for pattern, form in known.items()
    ]
    return {"type": "object", "properties": {"name": name}, "allOf": cases}


def _collection(group: str, forms: Mapping[str, Form]) -> _Schema:
    """Names mapped to their arguments, or to null, which takes the entry of the base away."""
    entries = {_pattern(name, group): _any_of([_mapping(form), {"type": "null"}]) for name, form in forms.items()}
    names = {name: {"description": form.doc.partition("\n")[0]} for name, form in forms.items()}
    return {"type": "object", "properties": names, "patternProperties": entries, "additionalProperties": False}


def _pattern(name: str, kind: str) -> str:
    """A regular expression for all spellings of a name."""
    letters = ["_*".join(f"[{letter}{letter.upper()}]" for letter in word) for word in (spelling(name, kind), kind)]
    return f"^_*{letters[0]}_*({letters[1]})?_*$"
