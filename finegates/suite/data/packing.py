"""Documents as sequences of equal length without padding, and the position in such a stream."""

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
"""Label of what is not predicted."""

REMEMBERED = 4096
"""Positions that a stream remembers: more than any loader reads ahead."""


def document_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A document's token ids with the tokenizer's own marks around it.

    Where the tokenizer adds neither a beginning nor an end, its end (or beginning) token is
    appended: in a packed sequence something must tell documents apart.
    """
    ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
    marks = {tokenizer.bos_token_id, tokenizer.eos_token_id} - {None}
    if ids and marks and ids[0] not in marks and ids[-1] not in marks:
        end = tokenizer.eos_token_id
        ids = [*ids, tokenizer.bos_token_id if end is None else end]
    return ids


class PackedText(IterableDataset[dict[str, Tensor]]):
    """An endless stream of sequences of ``length`` tokens, documents one after another.

    A document goes on in the next sequence where one ends; nothing is padded and nothing lost.
    Two streams of the same documents give the same sequences, and one that is put to a position
    with :meth:`seek` gives those that follow it.

    Args:
        documents: the source.
        tokenizer: of the model.
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
        """Continues from a position that :meth:`position` gave."""
        self._start = position

    def position(self, sequences: int) -> dict[str, Any]:
        """The position after so many sequences from the beginning.

        A loader reads ahead, so this is asked for by number and not for now. What it holds is plain
        (JSON).

        Raises:
            ValueError: the stream has not got there, or it is too long ago.
        """
        for kept in reversed(self._positions):
            if kept["sequences"] == sequences:
                return kept
        raise ValueError(f"the stream remembers no position after {sequences} sequences")

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Sequences from the present position on, without end."""
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
    """Held-out text in windows: each token behind the first is predicted exactly once.

    A window of ``length`` tokens predicts the token behind each; the next begins at the last of
    those. A last window is filled up and its filling not predicted.

    Args:
        documents: one after another, as in training.
        tokenizer: of the model.
        length: tokens of a window.
        alone: begin each document in a window of its own, so that it is predicted from nothing
            but itself; its first token is then not predicted.

    Attributes:
        inputs: (windows, length).
        labels: (windows, length), already shifted: position i holds what follows token i.
        tokens: predicted tokens.
        characters: of the documents, marks between documents not counted.

    Raises:
        TextError: nothing to predict.
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
