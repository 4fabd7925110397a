"""Documents of plain text from a folder, the hub, or the generator."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finegates.files import file_digest
from finegates.seeds import derive_seed
from finegates.suite.config.llama import TextSource

SPLITS = ("train", "validation")


class TextError(ValueError):
    """Text is invalid. The message names the file, the fault and the remedy."""


def text_folder(source: TextSource, results: str) -> Path | None:
    """The folder with the tier's text, None if it is streamed from the hub."""
    if source.generated is not None:
        return Path(results) / "llama" / "text"
    return None if source.path is None else Path(source.path)


def text_file(folder: str | Path, split: str) -> Path:
    """``<split>.parquet`` or ``<split>.txt``, or the former if neither exists."""
    candidates = [Path(folder) / f"{split}{suffix}" for suffix in (".parquet", ".txt")]
    return next((path for path in candidates if path.is_file()), candidates[0])


def text_files(source: TextSource, folder: str | Path) -> dict[str, Path]:
    """The files of the training and the validation split in a folder."""
    return {
        "train": text_file(folder, "train"),
        "validation": text_file(folder, source.evaluated),
    }


def read_documents(path: str | Path, column: str = "text", limit: int | None = None) -> list[str]:
    """Reads documents from a Parquet column or a UTF-8 text file.

    Empty lines separate the documents of a text file. Empty documents are left out.

    Args:
        path: ``.parquet``, or any other suffix for text.
        column: column of a Parquet file.
        limit: maximum number of documents; all if None.

    Raises:
        TextError: the file or column is missing, the file is not UTF-8 or Parquet, or it does not
            have any documents.
    """
    path = Path(path)
    try:
        found = _parquet(path, column) if path.suffix == ".parquet" else _plain(path)
    except OSError as error:
        raise TextError(
            f"cannot read text {path}: {error.strerror or error}; set llama.text.path of the "
            "configuration to a folder with train and validation as .parquet or .txt"
        ) from error
    documents = [text for text in found if text and not text.isspace()]
    if not documents:
        raise TextError(f"text {path} is empty; give a file with at least one document")
    return documents[:limit]


def _plain(path: Path) -> list[str]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TextError(
            f"text {path} is not UTF-8: byte 0x{content[error.start]:02x} on line {line}; convert "
            f"it, for example with iconv -f latin1 -t utf-8"
        ) from error
    return [part.strip("\n") for part in text.replace("\r\n", "\n").split("\n\n")]


def _parquet(path: Path, column: str) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        try:
            table = pq.read_table(file)
            table.validate(full=True)  # texts are UTF-8, offsets are within their buffers
            _ = table.column_names  # names are text
        except (pa.ArrowException, UnicodeDecodeError, OverflowError) as error:
            raise TextError(f"{path} is not a readable Parquet file: {error}") from error
    if column not in table.column_names:
        raise TextError(
            f"{path} has no column {column!r}, only {table.column_names}; set llama.text.column"
        )
    values = table.column(column)
    if not pa.types.is_string(values.type) and not pa.types.is_large_string(values.type):
        raise TextError(f"{path}: column {column!r} holds {values.type}, not text")
    return [value or "" for value in values.to_pylist()]


class Documents:
    """An endless, shuffled iterator over a list of documents.

    The order of each epoch depends only on the seed, so that runs with the same seed see the same
    text.

    Attributes:
        position: finished epochs, and documents of the current one.
    """

    def __init__(self, texts: Sequence[str], seed: int) -> None:
        if not texts:
            raise TextError("no documents: there is nothing to train on")
        self.texts = texts
        self.seed = seed
        self.position: dict[str, Any] = {"round": 0, "document": 0}

    def seek(self, position: dict[str, Any]) -> None:
        """Continues from a ``position``."""
        self.position = dict(position)

    def __iter__(self) -> Iterator[str]:
        """Yields documents from the current position, without end."""
        while True:
            order = list(range(len(self.texts)))
            random.Random(derive_seed(self.seed, "order", self.position["round"])).shuffle(order)
            for number in range(self.position["document"], len(order)):
                self.position = {"round": self.position["round"], "document": number + 1}
                yield self.texts[order[number]]
            self.position = {"round": self.position["round"] + 1, "document": 0}


class StreamedDocuments:
    """An endless iterator over a ``datasets.IterableDataset``, in order.

    Attributes:
        position: finished epochs, and the state of the stream, so that resuming does not read and
            skip documents.
    """

    def __init__(self, stream: Any, column: str = "text") -> None:
        self._beginning = stream
        self._column = column
        self._round = 0
        # The state after the last yielded document, because the stream reads ahead.
        self._state: dict[str, Any] | None = None

    @property
    def position(self) -> dict[str, Any]:
        """The current position."""
        return {"round": self._round, "stream": self._state}

    def seek(self, position: dict[str, Any]) -> None:
        """Continues from a ``position``."""
        self._round = position["round"]
        self._state = position["stream"]

    def __iter__(self) -> Iterator[str]:
        """Yields documents from the current position, without end."""
        while True:
            # A stream with a loaded state always starts there, so each epoch has its own copy.
            stream = copy.deepcopy(self._beginning)
            whole = self._state is None
            if self._state is not None:
                stream.load_state_dict(self._state)
            given = False
            for row in stream:
                if self._column not in row:
                    raise TextError(
                        f"the stream has no column {self._column!r}, only {sorted(row)}; set "
                        "llama.text.column"
                    )
                self._state = stream.state_dict()
                if row[self._column] and not row[self._column].isspace():
                    given = True
                    yield row[self._column]
            if whole and not given:
                raise TextError("the stream is empty: there is nothing to train on")
            self._round, self._state = self._round + 1, None


def training_documents(
    source: TextSource, results: str, seed: int
) -> Documents | StreamedDocuments:
    """The training text without held-out documents.

    Raises:
        TextError: see :func:`read_documents`; or ``held_out`` leaves no documents to train on.
    """
    folder = text_folder(source, results)
    if folder is None:
        return StreamedDocuments(_stream(source, "train"), source.column)
    return Documents(_split_training(source, folder)[0], seed)


def tokenizer_documents(source: TextSource, results: str) -> Sequence[str]:
    """Documents to train a tokenizer on: the training split in file order.

    Raises:
        TextError: the text is streamed and has no end, or see :func:`training_documents`.
    """
    folder = text_folder(source, results)
    if folder is None:
        raise TextError(
            f"text {source.name!r} is streamed and has no end to count words to; give "
            "llama.pretraining.tokenizer a path or hub instead of words"
        )
    return _split_training(source, folder)[0]


def held_out_documents(source: TextSource, results: str) -> list[str]:
    """The validation documents, or those held out of training.

    Raises:
        TextError: see :func:`training_documents`.
    """
    folder = text_folder(source, results)
    if folder is not None and source.held_out is not None:
        return _split_training(source, folder)[1][: source.validation_documents]
    if folder is not None:
        path = text_file(folder, source.evaluated)
        return read_documents(path, source.column, source.validation_documents)
    assert source.validation_documents is not None
    stream = StreamedDocuments(_stream(source, source.evaluated), source.column)
    return [text for text, _ in zip(stream, range(source.validation_documents), strict=False)]


def _split_training(source: TextSource, folder: Path) -> tuple[list[str], list[str]]:
    """Splits the training split into documents for training and held-out ones."""
    path = text_file(folder, "train")
    documents = read_documents(path, source.column)
    cut = len(documents) - (source.held_out or 0)
    if cut < 1:
        raise TextError(
            f"llama.text.held_out: {source.held_out} documents leave none of the {len(documents)} "
            f"of {path} to train on; lower it"
        )
    return documents[:cut], documents[cut:]


def _stream(source: TextSource, split: str) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(
            source.hub, source.subset, split=split, revision=source.revision, streaming=True
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise TextError(
            f"cannot stream text {source.name!r} from {source.hub} ({reason}); check the network, "
            "or download it elsewhere and set llama.text.path to the folder"
        ) from error


def describe_text(source: TextSource, results: str) -> dict[str, Any]:
    """The ``data`` entry of a run record: source and digests of the text."""
    folder = text_folder(source, results)
    files = {} if folder is None else text_files(source, folder)
    status = {split: _status(path) for split, path in files.items()}
    if source.held_out is not None:
        # Captions print the status, so that held-out text is not taken for the reported split.
        files["validation"] = files["train"]
        status["validation"] = f"last {source.held_out:,} documents held out of train"
    return {
        "name": source.name,
        "source": source.kind,
        "revision": source.revision,
        "validation_documents": source.validation_documents,
        "sha256": {split: file_digest(path) for split, path in files.items()},
        "status": status,
    }


def _status(path: Path) -> str | None:
    """The metadata ``split_status`` of a Parquet file, None if it is missing."""
    if path.suffix != ".parquet":
        return None
    import pyarrow.parquet as pq

    metadata = pq.read_schema(path).metadata or {}
    status = metadata.get(b"split_status")
    return None if status is None else status.decode()
