"""Text as tensors: blocks of it to predict, and passages with classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, default_collate

from sam_algos.recipes.errors import BadArgument

_BYTES = 256


@dataclass(frozen=True)
class Vocabulary:
    """What numbers text is read as: its bytes in UTF-8, or the tokens of a tokenizer.

    Args:
        tokenizer (Any, optional): One of Hugging Face's. Default: none, for bytes; 0, which is in no text, pads.
    """

    tokenizer: Any = None

    @classmethod
    def of(cls, path: str | None) -> Vocabulary:
        """The vocabulary of a tokenizer in a folder, that of bytes without.

        Args:
            path (str, optional): What ``save_pretrained`` wrote. Default: none.

        Returns:
            Vocabulary: To read text with.

        Raises:
            ValueError: If there is no tokenizer in the folder, and if transformers is not installed.
        """
        if path is None:
            return cls()
        auto = transformers("AutoTokenizer")
        try:
            return cls(auto.from_pretrained(Path(path).expanduser(), local_files_only=True, trust_remote_code=False))
        except (OSError, ValueError, KeyError) as error:
            raise BadArgument("tokenizer", f"{path!r} does not hold one: {error}") from error

    @property
    def size(self) -> int:
        """Number of different tokens."""
        return _BYTES if self.tokenizer is None else len(self.tokenizer)

    @property
    def pad(self) -> int:
        """The token that fills up a batch; it is masked."""
        if self.tokenizer is None:
            return 0
        known = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return next((token for token in known if token is not None), 0)

    def whole(self, text: str) -> Tensor:
        """The tokens of a text, shape ``(n,)``."""
        if self.tokenizer is None:
            return torch.tensor(list(text.encode()), dtype=torch.int64)
        return torch.tensor(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def beginning(self, text: str, length: int) -> Tensor:
        """The first tokens of a text, with those that its tokenizer puts around one; at most ``length``."""
        if self.tokenizer is None:
            return self.whole(text)[:length]
        return torch.tensor(self.tokenizer(text, truncation=True, max_length=length)["input_ids"], dtype=torch.int64)


@dataclass(eq=False)
class TextBlocks(Dataset[dict[str, Tensor]]):
    """Blocks of text, each to be predicted token by token.

    Args:
        blocks (Tensor): Shape ``(n, length)``.
        vocabulary (Vocabulary): What the numbers mean.
    """

    blocks: Tensor
    vocabulary: Vocabulary
    num_classes: int = 1

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """A block; models of language shift the labels themselves."""
        block = self.blocks[index]
        return {"input_ids": block, "attention_mask": torch.ones_like(block), "labels": block}

    @property
    def labels(self) -> Tensor:
        """One class for all."""
        return torch.zeros(len(self), dtype=torch.int64)

    @property
    def length(self) -> int:
        """Tokens in a block."""
        return self.blocks.shape[1]

    def among(self, indices: Sequence[int]) -> TextBlocks:
        """Some of the blocks, in the order of the indices."""
        return replace(self, blocks=self.blocks[list(indices)])

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """A batch, whose tensors are its own."""
        return default_collate(samples)


@dataclass(eq=False)
class LabelledTexts(Dataset[tuple[Tensor, int]]):
    """Passages of text with classes that can be replaced.

    Args:
        passages (Sequence[Tensor]): The tokens of each; of any length but 0.
        labels (Tensor): One integer class per passage, shape ``(n,)``.
        num_classes (int): Number of classes.
        vocabulary (Vocabulary): What the numbers mean.
        length (int): Tokens in the longest passage that there may be.
    """

    passages: Sequence[Tensor]
    labels: Tensor
    num_classes: int
    vocabulary: Vocabulary
    length: int

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
        ids = pad_sequence(list(passages), batch_first=True, padding_value=self.vocabulary.pad)
        lengths = torch.tensor([len(passage) for passage in passages])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(labels)}


def blocks_of(text: str, length: int, vocabulary: Vocabulary) -> TextBlocks:
    """Cut a text into blocks that do not overlap; the rest at its end, which fills none, is left out.

    Args:
        text (str): Any.
        length (int): Tokens in a block, at least 2.
        vocabulary (Vocabulary): What to read it with.

    Returns:
        TextBlocks: In the text's order.

    Raises:
        ValueError: If a block is too short, or longer than the text.

    Example:
        >>> blocks_of("to be or not", 4, Vocabulary()).blocks[0].tolist()
        [116, 111, 32, 98]
    """
    if length < 2:
        raise BadArgument("block_size", f"must be at least 2, got {length}")
    tokens = vocabulary.whole(text)
    count = len(tokens) // length
    if not count:
        raise BadArgument("block_size", f"must be at most {len(tokens)}, the tokens of the text, got {length}")
    return TextBlocks(tokens[: count * length].reshape(count, length), vocabulary)


def transformers(name: str) -> Any:
    """Something of Hugging Face's library, which is optional.

    Args:
        name (str): What it is called there.

    Returns:
        Any: A class.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import transformers as library
    except ImportError:
        raise ValueError("Hugging Face's transformers is not installed: pip install 'sam_algos[text]'") from None
    return getattr(library, name)
