"""The data sets of text: Python's own documentation, and files. Nothing is ever downloaded."""

from __future__ import annotations

import csv
import io
import json
import pydoc_data.topics
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from sam_algos.core.options import PositiveInt
from sam_algos.recipes.errors import BadArgument
from sam_algos.recipes.paths import File, Folder
from sam_algos.recipes.sources import dataset, with_own_test_set
from sam_algos.recipes.splits import Part, divide
from sam_algos.recipes.texts import LabelledTexts, TextBlocks, Vocabulary, blocks_of

TOPICS = (
    "specialnames", "compound", "types", "string-methods", "debugger", "typesseq", "typesmapping", "formatstrings",
)  # fmt: skip
"""Chapters of Python's documentation, the longest of those that do not repeat one another."""


@dataset
def python_docs(
    *, part: Part, augment: bool, block_size: int = 128, tokenizer: Folder | None = None, split_seed: int = 0
) -> TextBlocks:
    """Python's own documentation (``pydoc_data.topics``, half a megabyte that depends on its version) to predict.

    A fifth of its paragraphs is for validation, the same in every run. Of the others `split_seed` draws a fifth of all
    to test on. Every paragraph is there once. The text is read as bytes, or with the `tokenizer` in a folder.
    """
    paragraphs = list(dict.fromkeys(text for topic in _topics().values() for text in _paragraphs(topic)))
    chosen = _divided(torch.zeros(len(paragraphs)), part, split_seed)
    return blocks_of("\n\n".join(paragraphs[i] for i in chosen), block_size, Vocabulary.of(tokenizer))


@dataset
def python_topics(
    *, part: Part, augment: bool, max_length: PositiveInt = 256, tokenizer: Folder | None = None, split_seed: int = 0
) -> LabelledTexts:
    """Paragraphs of Python's own documentation; the class is which of eight chapters it is from.

    Divided as `python_docs`, each chapter in its share. Paragraphs of less than 40 characters are left out, and those
    in more than one chapter; the beginning of the others is read, `max_length` bytes or tokens.
    """
    chapters = [_paragraphs(_topics()[name]) for name in TOPICS]
    seen: dict[str, set[int]] = {}
    for label, chapter in enumerate(chapters):
        for text in chapter:
            seen.setdefault(text, set()).add(label)
    texts = [text for text, found in seen.items() if len(found) == 1 and len(text) >= 40]
    labels = torch.tensor([min(seen[text]) for text in texts])
    data = _labelled(texts, labels, len(TOPICS), max_length, tokenizer)
    return data.among(_divided(labels, part, split_seed))


@dataset
@with_own_test_set
def text_file(
    *, train: bool, augment: bool, path: File, eval_path: File | None = None, block_size: int = 128,
    tokenizer: Folder | None = None,
) -> TextBlocks:  # fmt: skip
    """A text in UTF-8 to predict, and another, `eval_path`, to test on; `validation` counts blocks."""
    text = _read(path, "path") if train else _read(eval_path, "eval_path")
    return blocks_of(text, block_size, Vocabulary.of(tokenizer))


@dataset
@with_own_test_set
def text_table(
    *, train: bool, augment: bool, path: File, eval_path: File | None = None, text: str = "text", label: str = "label",
    max_length: PositiveInt = 256, tokenizer: Folder | None = None,
) -> LabelledTexts:  # fmt: skip
    """Texts with labels: a ``.csv`` file with a header, or ``.jsonl`` with an object on each line.

    `text` and `label` name the columns; the classes are the different labels of `path`, sorted as text. `eval_path` is
    a file to test on.
    """
    rows = _rows(path, "path", text, label)
    classes = {name: number for number, name in enumerate(sorted({row[1] for row in rows}))}
    if len(classes) < 2:
        raise BadArgument("label", f"{label!r} must have at least 2 values in {path!r}, got {len(classes)}")
    if not train:
        rows = _rows(eval_path, "eval_path", text, label)
        for _, name in rows:
            if name not in classes:
                raise BadArgument("eval_path", f"the label {name!r} is not among those of {path!r}")
    labels = torch.tensor([classes[name] for _, name in rows])
    return _labelled([row[0] for row in rows], labels, len(classes), max_length, tokenizer)


def _topics() -> dict[str, str]:
    return pydoc_data.topics.topics


def _paragraphs(text: str) -> list[str]:
    return [paragraph for part in re.split(r"\n\s*\n", text) if (paragraph := part.strip())]


def _divided(labels: torch.Tensor, part: Part, seed: int) -> Sequence[int]:
    """The indices of a part: a fifth for validation, a fifth to test on, the others to train on."""
    fifth = len(labels) // 5
    others, validation = divide(labels, validation=fifth, train=None, seed=0)
    if part == "validation":
        return sorted(validation)
    train, test = divide(labels[list(others)], validation=fifth, train=None, seed=seed)
    return sorted(others[i] for i in (train if part == "train" else test))


def _labelled(
    texts: list[str], labels: torch.Tensor, num_classes: int, max_length: int, tokenizer: str | None
) -> LabelledTexts:
    vocabulary = Vocabulary.of(tokenizer)
    passages = [vocabulary.beginning(text, max_length) for text in texts]
    for text, passage in zip(texts, passages, strict=True):
        if not len(passage):
            raise ValueError(f"a text without a token: {text!r}")
    return LabelledTexts(passages, labels, num_classes, vocabulary, max_length)


def _rows(path: str | None, what: str, text: str, label: str) -> list[tuple[str, str]]:
    """The texts and labels of a table."""
    content, suffix = _read(path, what), Path(str(path)).suffix
    if suffix not in (".csv", ".jsonl"):
        raise BadArgument(what, f"{path!r} must end with .csv or .jsonl")
    table: Iterable[Any]
    if suffix == ".csv":
        table = csv.DictReader(io.StringIO(content))
    else:
        table = (json.loads(line) for line in content.split("\n") if line.strip())
    try:
        return [(str(row[text]), str(row[label])) for row in table]
    except KeyError as error:
        raise BadArgument(what, f"{path!r} has a row without {error}; name its columns with text and label") from None
    except (ValueError, TypeError, csv.Error) as error:
        raise BadArgument(what, f"{path!r} is not a table: {error}") from error


def _read(path: str | None, what: str) -> str:
    if path is None:
        raise BadArgument(what, "required to test; or set validation aside, and evaluate: validation")
    try:
        content = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadArgument(what, f"cannot read {path!r}: {error}") from error
    if not content.strip() or "\0" in content:
        raise BadArgument(what, f"{path!r} is empty, or no text")
    return content
