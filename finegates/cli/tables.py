"""Tables of labelled text from files: CSV, TSV, JSON, JSON lines, Parquet.

A table maps column names to lists of values. Missing values are None.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finegates.cli.failures import SUITE_EXTRA, CommandError, lacks
from finegates.files import parse_json

Table = dict[str, list[Any]]

LONGEST_FIELD = 2**27
"""Characters in a CSV field; Python's limit, 128 Ki, is less than a long document."""


def read_table(path: str | Path) -> Table:
    """Reads a table in the format of the file's suffix.

    The suffixes are ``.csv``, ``.tsv``, ``.json``, ``.jsonl`` (or ``.ndjson``) and ``.parquet``.
    CSV and TSV are UTF-8 with a header line, and fields are quoted with ``"`` if needed. JSON is a
    list of objects, JSON lines one object per line.

    Returns:
        columns of one length, at least one row.

    Raises:
        CommandError: the file does not exist, its suffix is unknown, it cannot be read, or it has
            no rows.
    """
    path = Path(path)
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise CommandError(
            f"{path}: cannot tell the file's format from {path.suffix or 'its name'!r}; give it "
            f"one of the suffixes {', '.join(READERS)}"
        )
    if not path.is_file():
        raise CommandError(f"{path}: no such file; check the path")
    try:
        table = read(path)
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except (ValueError, csv.Error) as error:
        raise CommandError(f"{path}: {error}; correct the file") from error
    if not table or not next(iter(table.values())):
        raise CommandError(f"{path}: has no rows; give a file with at least one")
    return table


def _csv(path: Path, delimiter: str = ",") -> Table:
    limit = csv.field_size_limit(LONGEST_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            # Strict: an unclosed quotation mark would swallow the rest of the file.
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            names = next(reader, [])
            _check_names(names)
            rows = []
            for row in reader:
                if not row:  # an empty line
                    continue
                if len(row) != len(names):
                    raise ValueError(
                        f"line {reader.line_num} has {len(row)} fields, the first line {len(names)}"
                    )
                rows.append([value if value != "" else None for value in row])
    finally:
        csv.field_size_limit(limit)
    return {name: [row[place] for row in rows] for place, name in enumerate(names)}


def _tsv(path: Path) -> Table:
    return _csv(path, "\t")


def _check_names(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the column {twice[0]!r} appears twice")


def _json(path: Path) -> Table:
    rows = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise ValueError("is JSON, but not a list of objects")
    return _columns(rows)


def _json_lines(path: Path) -> Table:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                rows.append(parse_json(line))
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from error
    return _columns(rows)


def _columns(rows: list[Any]) -> Table:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is not an object")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise lacks(error, f"{path}: reading Parquet", SUITE_EXTRA) from error
    try:
        table: Table = parquet.read_table(path).to_pydict()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"is not a readable Parquet file ({error})") from error
    return table


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".parquet": _parquet,
}
