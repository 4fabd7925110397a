"""Packs documents into sequences of equal length, with exact resume."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from finegates.suite.data.text import Documents, StreamedDocuments, TextError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of tokens that are not predicted."""

REMEMBERED = 4096
"""Positions that a stream remembers, more than any loader prefetches."""


def document_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A document's token ids with the tokenizer's special tokens.

    If the tokenizer adds neither BOS nor EOS, its EOS (or BOS) token is appended, because documents
    in a packed sequence must be separated.
    """
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    marks = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    if ids and marks and ids[0] not in marks and ids[-1] not in marks:
        end = tokenizer.eos_token_id
        ids = [*ids, tokenizer.bos_token_id if end is None else end]
    return ids


class PackedText(IterableDataset[dict[str, Tensor]]):
    """An endless stream of sequences of ``length`` tokens from documents.

    A document continues in the next sequence; tokens are neither padded nor dropped. Two streams of
    the same documents yield the same sequences. After :meth:`seek`, a stream yields the sequences
    that follow the position.

    Args:
        documents: source of the documents.
        tokenizer: tokenizer of the model.
        length: tokens of a sequence.
    """

    def __init__(
        self,
        documents: Documents | StreamedDocuments,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
    ) -> None:
        self._documents = documents
        self._tokenizer = tokenizer
        self._length = length
        self._start: dict[str, Any] = {
            "sequences": 0,
            "tokens": [],
            "source": documents.position,
        }
        self._positions: deque[dict[str, Any]] = deque([self._start], maxlen=REMEMBERED)

    def seek(self, position: dict[str, Any]) -> None:
        """Continues from a position returned by :meth:`position`."""
        self._start = position

    def position(self, sequences: int) -> dict[str, Any]:
        """The position after a number of sequences, as JSON values.

        A data loader reads ahead, so the position is requested by the number of consumed sequences.

        Raises:
            ValueError: the stream has not reached this position, or does not remember it any more.
        """
        for kept in reversed(self._positions):
            if kept["sequences"] == sequences:
                return kept
        raise ValueError(f"the stream remembers no position after {sequences} sequences")

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yields sequences from the current position, without end."""
        self._documents.seek(self._start["source"])
        tokens = list(self._start["tokens"])
        sequences = self._start["sequences"]
        self._positions.clear()
        self._positions.append(self._start)
        source = iter(self._documents)
        while True:
            while len(tokens) < self._length:
                tokens += document_tokens(self._tokenizer, next(source))
            ids = torch.tensor(tokens[: self._length])
            tokens = tokens[self._length :]
            sequences += 1
            self._positions.append(
                {
                    "sequences": sequences,
                    "tokens": list(tokens),
                    "source": self._documents.position,
                }
            )
            yield {"input_ids": ids, "labels": ids.clone()}


class HeldOut:
    """Held-out text in windows. Each token after the first is predicted once.

    A window of ``length`` tokens predicts the next token at each position. The following window
    begins with the last predicted token. The last window is padded, and its padding is not
    predicted.

    Args:
        documents: documents, concatenated as in training.
        tokenizer: tokenizer of the model.
        length: tokens of a window.
        alone: start each document in a window of its own, without context from other documents; its
            first token is then not predicted.

    Attributes:
        inputs: token ids, (windows, length).
        labels: (windows, length), already shifted: position i holds the token after token i.
        tokens: number of predicted tokens.
        characters: number of characters of the documents, without separators.

    Raises:
        TextError: there is nothing to predict.
    """

    def __init__(
        self,
        documents: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        *,
        alone: bool = False,
    ) -> None:
        encoded = [document_tokens(tokenizer, text) for text in documents]
        if not alone:
            encoded = [[token for ids in encoded for token in ids]]
        windows = [window for ids in encoded for window in _windows(ids, length)]
        if not windows:
            raise TextError("held-out text has fewer than two tokens; give a longer one")
        self.characters = sum(map(len, documents))
        self.inputs = torch.tensor([inputs for inputs, _ in windows])
        self.labels = torch.tensor([labels for _, labels in windows])
        self.tokens = int((self.labels != IGNORED).sum())

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.inputs[index], "labels": self.labels[index]}


def _windows(ids: list[int], length: int) -> Iterator[tuple[list[int], list[int]]]:
    for start in range(0, len(ids) - 1, length):
        labels = ids[start + 1 : start + 1 + length]
        missing = length - len(labels)
        inputs = ids[start : start + len(labels)]
        yield inputs + [0] * missing, labels + [IGNORED] * missing
