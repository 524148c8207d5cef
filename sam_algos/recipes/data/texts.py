"""Text: blocks of it to predict, and passages with classes. Nothing is ever downloaded."""

from __future__ import annotations

import csv
import io
import json
import pydoc_data.topics
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from sam_algos.core.options import PositiveInt
from sam_algos.recipes.data.samples import Part, divide
from sam_algos.recipes.data.sources import dataset
from sam_algos.recipes.errors import BadArgument
from sam_algos.recipes.naming.arguments import File, Folder

TOPICS = (
    "specialnames", "compound", "types", "string-methods", "debugger", "typesseq", "typesmapping", "formatstrings",
)  # fmt: skip
"""Chapters of Python's documentation, the longest of those that do not repeat one another."""


class Bytes:
    """Reads text as its bytes in UTF-8, with the interface of Hugging Face's tokenizers; 0 pads, as no text has it."""

    pad_token_id = 0

    def __len__(self) -> int:
        """Number of different tokens."""
        return 256

    def __call__(self, text: str, *, max_length: int | None = None, **options: Any) -> dict[str, list[int]]:
        """The tokens of a text."""
        return {"input_ids": list(text.encode())[:max_length]}


@dataclass(eq=False)
class LabelledTexts(Dataset[tuple[Tensor, int]]):
    """Passages of text with classes that can be replaced.

    Args:
        passages (Sequence[Tensor]): The tokens of each; at least one.
        labels (Tensor): One integer class per passage, shape ``(n,)``.
        num_classes (int): Number of classes.
        tokenizer (Any): What it was read with: `Bytes`, or one of Hugging Face's.
        length (int): The most tokens that a passage may have.
    """

    passages: Sequence[Tensor]
    labels: Tensor
    num_classes: int
    tokenizer: Any
    length: int

    @property
    def pad(self) -> int:
        """The token that fills up a batch; it is masked."""
        known = (getattr(self.tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
        return next((token for token in known if token is not None), 0)

    def __len__(self) -> int:
        """Number of passages."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The tokens and the label of one passage."""
        return self.passages[index], int(self.labels[index])

    def among(self, indices: Sequence[int]) -> LabelledTexts:
        """Some of the passages, in the order of the indices."""
        return replace(self, passages=[self.passages[i] for i in indices], labels=self.labels[list(indices)])

    def collate(self, samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        """A batch as wide as its longest passage; what is beyond the end of the others is masked."""
        passages, labels = zip(*samples, strict=True)
        ids = pad_sequence(list(passages), batch_first=True, padding_value=self.pad)
        lengths = torch.tensor([len(passage) for passage in passages])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(labels)}


class TextBlocks(LabelledTexts):
    """Blocks of text, each to be predicted token by token; all are of one class."""

    def collate(self, samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        """A batch; language models shift the labels themselves."""
        batch = super().collate(samples)
        return {**batch, "labels": batch["input_ids"].clone()}


@dataset()
def python_docs(
    *, part: Part, augment: bool, block_size: int = 128, tokenizer: Folder | None = None, split_seed: int = 0
) -> TextBlocks:
    """Python's own documentation (``pydoc_data.topics``, half a megabyte that depends on its version) to predict.

    A fifth of its paragraphs is for validation, the same in every run. Of the others `split_seed` draws a fifth of all
    to test on. Every paragraph is there once. The text is read as bytes, or with the `tokenizer` in a folder.
    """
    paragraphs = list(dict.fromkeys(text for topic in pydoc_data.topics.topics.values() for text in _paragraphs(topic)))
    chosen = _divided(torch.zeros(len(paragraphs)), part, split_seed)
    return _blocks("\n\n".join(paragraphs[i] for i in chosen), block_size, tokenizer)


@dataset()
def python_topics(
    *, part: Part, augment: bool, max_length: PositiveInt = 256, tokenizer: Folder | None = None, split_seed: int = 0
) -> LabelledTexts:
    """Paragraphs of Python's own documentation; the class is which of eight chapters it is from.

    Divided as `python_docs`, each chapter in its share. Paragraphs of less than 40 characters are left out, and those
    in more than one chapter; the beginning of the others is read, `max_length` bytes or tokens.
    """
    chapters = [_paragraphs(pydoc_data.topics.topics[name]) for name in TOPICS]
    seen: dict[str, set[int]] = {}
    for label, chapter in enumerate(chapters):
        for text in chapter:
            seen.setdefault(text, set()).add(label)
    texts = [text for text, found in seen.items() if len(found) == 1 and len(text) >= 40]
    labels = torch.tensor([min(seen[text]) for text in texts])
    data = _passages(texts, labels, len(TOPICS), max_length, tokenizer)
    return data.among(_divided(labels, part, split_seed))


@dataset(own_test_set=True)
def text_file(
    *, train: bool, augment: bool, path: File, eval_path: File | None = None, block_size: int = 128,
    tokenizer: Folder | None = None,
) -> TextBlocks:  # fmt: skip
    """A text in UTF-8 to predict, and another, `eval_path`, to test on; `validation` counts blocks."""
    text = _read(path, "path") if train else _read(eval_path, "eval_path")
    return _blocks(text, block_size, tokenizer)


@dataset(own_test_set=True)
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
    return _passages([row[0] for row in rows], labels, len(classes), max_length, tokenizer)


def _paragraphs(text: str) -> list[str]:
    return [paragraph for part in re.split(r"\n\s*\n", text) if (paragraph := part.strip())]


def _divided(labels: Tensor, part: Part, seed: int) -> Sequence[int]:
    """The indices of a part: a fifth for validation, a fifth to test on, the others to train on."""
    fifth = len(labels) // 5
    others, validation = divide(labels, validation=fifth, train=None, seed=0)
    if part == "validation":
        return sorted(validation)
    train, test = divide(labels[list(others)], validation=fifth, train=None, seed=seed)
    return sorted(others[i] for i in (train if part == "train" else test))


def _tokenizer(path: str | None) -> Any:
    """The tokenizer that ``save_pretrained`` wrote to a folder."""
    if path is None:
        return Bytes()
    auto = transformers("AutoTokenizer")
    try:
        return auto.from_pretrained(Path(path).expanduser(), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise BadArgument("tokenizer", f"{path!r} does not hold one: {error}") from error


def transformers(name: str) -> Any:
    """A class of Hugging Face's library, which is optional."""
    try:
        import transformers as library
    except ImportError:
        raise ValueError("Hugging Face's transformers is not installed: pip install 'sam_algos[text]'") from None
    return getattr(library, name)


def _blocks(text: str, length: int, path: str | None) -> TextBlocks:
    """Cut a text into blocks that do not overlap; the rest at its end is left out."""
    tokenizer = _tokenizer(path)
    if length < 2:
        raise BadArgument("block_size", f"must be at least 2, got {length}")
    tokens = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    count = len(tokens) // length
    if not count:
        raise BadArgument("block_size", f"must be at most {len(tokens)}, the tokens of the text, got {length}")
    blocks = list(tokens[: count * length].reshape(count, length))
    return TextBlocks(blocks, torch.zeros(count, dtype=torch.int64), 1, tokenizer, length)


def _passages(texts: list[str], labels: Tensor, num_classes: int, length: int, path: str | None) -> LabelledTexts:
    """The beginnings of texts, with the tokens that their tokenizer puts around one."""
    tokenizer = _tokenizer(path)
    passages = [torch.tensor(tokenizer(text, truncation=True, max_length=length)["input_ids"]) for text in texts]
    for text, passage in zip(texts, passages, strict=True):
        if not len(passage):
            raise ValueError(f"a text without a token: {text!r}")
    return LabelledTexts(passages, labels, num_classes, tokenizer, length)


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
