"""Text as data: what is in which part, as which numbers, and what is masked."""

from __future__ import annotations

import json
import pydoc_data.topics
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sam_algos.recipes import RecipeError
from sam_algos.recipes.data.datasets import build_dataset, check_alike, eval_section
from sam_algos.recipes.data.texts import TOPICS, Bytes, LabelledTexts, TextBlocks

PARTS = ("train", "validation", "test")


def part(section: dict[str, Any], name: str) -> Any:
    section = section if name == "train" else {**section, "evaluate": name}
    return build_dataset("data", section, train=name == "train")


def tokens(data: TextBlocks) -> torch.Tensor:
    return torch.stack(list(data.passages))


def decoded(tokens: torch.Tensor) -> str:
    return bytes(tokens.tolist()).decode(errors="replace")


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    """A folder with a tokenizer that knows six words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "to", "be", "or", "not"])}
    bare = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "tokenizer"
    PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    return str(folder)


def test_no_paragraph_of_pythons_documentation_is_in_two_parts_or_twice_in_one() -> None:
    section = {"name": "python_docs", "split_seed": 2}
    parts = {name: part(section, name) for name in PARTS}
    paragraphs = {name: decoded(tokens(data).flatten()).split("\n\n")[:-1] for name, data in parts.items()}
    together = [paragraph for found in paragraphs.values() for paragraph in found]
    assert len(set(together)) == len(together)
    whole = "\n".join(pydoc_data.topics.topics.values())
    assert sum(len(data) * 128 for data in parts.values()) > 0.6 * len(whole)
    assert len(paragraphs["validation"]) == pytest.approx(len(together) / 5, abs=2)
    assert len(paragraphs["test"]) == pytest.approx(len(together) / 5, abs=2)


@pytest.mark.parametrize("name", ["python_docs", "python_topics"])
def test_the_seed_draws_what_is_tested_on_but_not_what_is_validated_on(name: str) -> None:
    def rows(part_name: str, seed: int) -> set[tuple[int, ...]]:
        data = part({"name": name, "split_seed": seed}, part_name)
        return {tuple(row.tolist()) for row in data.passages}

    assert rows("validation", 0) == rows("validation", 1)
    assert rows("test", 0) == rows("test", 0)
    assert rows("test", 0) != rows("test", 1)
    assert not rows("train", 1) & (rows("test", 1) | rows("validation", 1))
    assert not rows("test", 1) & rows("validation", 1)


def test_each_chapter_has_its_share_of_each_part() -> None:
    section = {"name": "python_topics", "split_seed": 1, "max_length": 100_000}
    parts = {name: part(section, name) for name in PARTS}
    counts = {name: torch.bincount(data.labels, minlength=len(TOPICS)) for name, data in parts.items()}
    assert all(int(counted.min()) >= 10 for counted in counts.values())
    shares = [counted / counted.sum() for counted in counts.values()]
    assert all(torch.allclose(share, shares[0], atol=0.02) for share in shares)
    chapters = [pydoc_data.topics.topics[name] for name in TOPICS]
    paragraphs = [{text.strip() for text in re.split(r"\n\s*\n", chapter)} for chapter in chapters]
    for data in parts.values():
        for passage, label in zip(data.passages, data.labels.tolist(), strict=True):
            assert [number for number, known in enumerate(paragraphs) if decoded(passage) in known] == [label]


def test_passages_are_cut_to_their_length() -> None:
    whole = part({"name": "python_topics", "max_length": 100_000}, "test")
    data = part({"name": "python_topics", "max_length": 50}, "test")
    assert max(map(len, data.passages)) == data.length == 50
    assert all(torch.equal(a, b[:50]) for a, b in zip(data.passages, whole.passages, strict=True))


def test_a_batch_is_as_wide_as_its_longest_passage_and_masks_the_rest() -> None:
    passages = [torch.tensor([5, 6, 7]), torch.tensor([8]), torch.tensor([9, 9])]
    data = LabelledTexts(passages, torch.tensor([1, 0, 1]), 2, Bytes(), length=9)
    batch = data.collate([data[i] for i in range(3)])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0], [9, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch["labels"].tolist() == [1, 0, 1]
    assert data.collate([data[1], data[2]])["input_ids"].shape == (2, 2)


def test_blocks_are_the_text_without_its_end(tmp_path: Path) -> None:
    text = "naïve – text, no NUL"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    data = part({"name": "text_file", "path": str(tmp_path / "a.txt"), "block_size": 4}, "train")
    assert bytes(tokens(data).flatten().tolist()) == text.encode()[: len(text.encode()) // 4 * 4]
    batch = data.collate([data[1], data[0]])
    assert torch.equal(batch["input_ids"], tokens(data)[[1, 0]]) and torch.equal(batch["labels"], batch["input_ids"])
    batch["labels"][:] = -100  # Composer's models write into labels
    assert tokens(data).min() > 0 and batch["input_ids"].min() > 0
    assert batch["attention_mask"].tolist() == [[1] * 4] * 2


def test_text_file(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "a.txt").write_text("to be or not to be what", encoding="utf-8")
    (tmp_path / "b.txt").write_text("not to be", encoding="utf-8")
    section = {"name": "text_file", "path": str(tmp_path / "a.txt"), "tokenizer": tokenizer, "block_size": 2}
    assert tokens(part(section, "train")).tolist() == [[2, 3], [4, 5], [2, 3]]
    tested = part({**section, "eval_path": str(tmp_path / "b.txt")}, "test")
    assert tokens(tested).tolist() == [[5, 2]]
    halves = [part({**section, "validation": 1, "split_seed": 3}, name) for name in ("train", "validation")]
    assert [len(half) for half in halves] == [2, 1]
    assert sorted(torch.cat([tokens(half) for half in halves]).tolist()) == [[2, 3], [2, 3], [4, 5]]
    assert (len(tested.tokenizer), tested.pad) == (6, 0)


ROWS = [("to be", "yes"), ("or, not", "no"), ("to\nbe or not", "yes"), ("be", "no")]


def write_table(path: Path, rows: list[tuple[str, str]]) -> str:
    if path.suffix == ".csv":
        quoted = [f'"{text}",{label}' for text, label in rows]
        path.write_text("\n".join(["text,label", *quoted]) + "\n", encoding="utf-8")
    else:
        path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_text_table(suffix: str, tmp_path: Path, tokenizer: str) -> None:
    path, other = write_table(tmp_path / f"a{suffix}", ROWS), write_table(tmp_path / f"b{suffix}", ROWS[:1])
    section = {"name": "text_table", "path": path, "eval_path": other, "max_length": 9}
    data, tested = part(section, "train"), part(section, "test")
    assert [decoded(passage) for passage in data.passages] == [text[:9] for text, _ in ROWS]
    assert (data.labels.tolist(), data.num_classes) == ([1, 0, 1, 0], 2)
    assert (tested.labels.tolist(), tested.num_classes) == ([1], 2)
    words = part({**section, "tokenizer": tokenizer, "max_length": 3}, "train")
    assert [passage.tolist() for passage in words.passages] == [[2, 3], [4, 1, 5], [2, 3, 4], [3]]
    noisy = build_dataset("data", {**section, "label_noise": 0.5}, train=True)
    assert int((noisy.labels != data.labels).sum()) == 2
    assert torch.equal(build_dataset("data", eval_section(section), train=False).labels, tested.labels)


def test_a_tokenizer_puts_its_own_tokens_around_a_passage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Around:
        pad_token_id, eos_token_id = None, 7

        def __call__(self, text: str, truncation: bool, max_length: int) -> dict[str, list[int]]:
            return {"input_ids": [1, *([2] * len(text))[: max_length - 2], 7]}

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: Around())
    section = {"name": "text_table", "path": write_table(tmp_path / "a.csv", ROWS), "tokenizer": str(tmp_path)}
    data = part({**section, "max_length": 4}, "train")
    assert data.passages[0].tolist() == [1, 2, 2, 7]
    assert data.pad == 7


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "python_docs", "block_size": 1}, "data.block_size: must be at least 2, got 1"),
        ({"name": "python_docs", "block_size": 10**7}, "data.block_size: must be at most "),
        (
            {"name": "python_docs", "label_noise": 0.1},
            "data.label_noise: must be 0 without at least two classes, got 0.1",
        ),
        ({"name": "python_docs", "tokenizer": "gpt2"}, "data.tokenizer: no folder 'gpt2'; put it there"),
        ({"name": "python_docs", "tokenizer": "."}, "data.tokenizer: '.' does not hold one: "),
        ({"name": "python_docs", "split_seed": -1}, "data.split_seed: "),
        ({"name": "python_topics", "max_length": 0}, "data.max_length: must be an integer >= 1, got 0"),
        ({"name": "python_topics", "augmentation": "cutout"}, "data: unknown argument 'augmentation'"),
        ({"name": "text_file"}, "data.path: required"),
        ({"name": "text_file", "path": "none.txt"}, "data.path: no file 'none.txt'; put it there"),
        ({"name": "text_file", "path": "."}, "data.path: no file '.'"),
        ({"name": "text_file", "path": "empty.txt"}, "data.path: 'empty.txt' is empty, or no text"),
        ({"name": "text_file", "path": "latin.txt"}, "data.path: cannot read 'latin.txt'"),
        ({"name": "text_file", "path": "text.txt"}, "data.eval_path: required to test; or set validation aside"),
        ({"name": "text_table", "path": "text.txt"}, "data.path: 'text.txt' must end with .csv or .jsonl"),
        (
            {"name": "text_table", "path": "one.csv"},
            "data.label: 'label' must have at least 2 values in 'one.csv', got 1",
        ),
        ({"name": "text_table", "path": "two.csv", "text": "txet"}, "data.path: 'two.csv' has a row without 'txet'"),
        ({"name": "text_table", "path": "bad.jsonl"}, "data.path: 'bad.jsonl' is not a table: "),
        ({"name": "text_table", "path": "none.jsonl"}, "data.path: 'none.jsonl' has a row without 'text'"),
        ({"name": "text_table", "path": "gap.csv"}, "a text without a token: ''"),
        (
            {"name": "text_table", "path": "two.csv", "eval_path": "one.csv"},
            "data.eval_path: the label 'x' is not among those of",
        ),
    ],
)
def test_wrong_text(section: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n")
    Path("text.txt").write_text("to be " * 100)
    Path("latin.txt").write_bytes(b"\xe4\xff")
    Path("one.csv").write_text("text,label\na,x\n")
    Path("two.csv").write_text("text,label\na,y\nb,z\n")
    Path("gap.csv").write_text("text,label\n,y\nb,z\n")
    Path("bad.jsonl").write_text("{")
    Path("none.jsonl").write_text('{"txt": "a", "label": 1}\n')
    with pytest.raises(RecipeError, match=re.escape(message)):
        build_dataset("data", section, train=not message.startswith("data.eval_path"))


def test_what_is_evaluated_on_must_be_of_the_same_kind(tokenizer: str) -> None:
    digits, blocks, passages = (part({"name": name}, "test") for name in ("digits", "python_docs", "python_topics"))
    check_alike(blocks, blocks)
    with pytest.raises(RecipeError, match="eval_dataset: TextBlocks, but train_dataset is LabelledImages"):
        check_alike(digits, blocks)
    with pytest.raises(RecipeError, match="eval_dataset: 8 classes, but train_dataset has 3"):
        check_alike(LabelledTexts(passages.passages, passages.labels, 3, Bytes(), 9), passages)
    words = part({"name": "python_docs", "tokenizer": tokenizer}, "test")
    with pytest.raises(RecipeError, match="eval_dataset: a vocabulary of 6 tokens, but train_dataset has 256"):
        check_alike(blocks, words)


def test_without_transformers_the_extra_is_named(tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RecipeError, match=re.escape("is not installed: pip install 'sam_algos[text]'")):
        build_dataset("data", {"name": "python_docs", "tokenizer": tokenizer}, train=True)
    assert len(part({"name": "python_docs"}, "test")) > 0
