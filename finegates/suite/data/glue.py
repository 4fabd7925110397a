"""Reads and checks GLUE's tables from a folder or the hub.

Sizes and label sets are those of the data set card ``nyu-mll/glue``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from finegates.files import file_digest
from finegates.suite.config.tasks import DataError, task_named

if TYPE_CHECKING:
    import pyarrow as pa


def split_path(folder: str | Path, task: str, split: str) -> Path:
    """The path of a split: ``<folder>/<task>/<split>.parquet``.

    ``split`` is ``train`` or ``validation``, which is the task's reported split (for MNLI
    ``validation_matched``).
    """
    name = task_named(task).validation if split == "validation" else split
    return Path(folder) / task / f"{name}.parquet"


def read_split(folder: str | Path, task: str, split: str, rows: int | None = None) -> pa.Table:
    """Reads the first ``rows`` rows of a split from a folder, all if None.

    Returns:
        the text columns and ``label`` (int64, or float32 for regression).

    Raises:
        DataError: a folder, file or column is missing, a file is unreadable, there are no rows,
            texts are empty, or labels are outside the task's set.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = split_path(folder, task, split)
    if not Path(folder).is_dir():
        raise DataError(
            f"data folder {folder} does not exist; set data.path of the configuration to a folder "
            "with <task>/<split>.parquet files"
        )
    if not path.is_file():
        raise DataError(f"{path} does not exist; the folder lacks split {split!r} of task {task!r}")
    try:
        table = pq.read_table(path)
        table.validate(full=True)  # texts are UTF-8, offsets are within their buffers
        _ = table.column_names  # names are text
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    return checked(table, task, str(path)).slice(0, rows)


def checked(table: pa.Table, task: str, origin: str) -> pa.Table:
    """The task's columns, checked as by :func:`read_split`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    spec = task_named(task)
    for column in (*spec.columns, "label"):
        if column not in table.column_names:
            raise DataError(
                f"{origin}: task {task!r} needs column {column!r}; found {table.column_names}"
            )
    table = table.select([*spec.columns, "label"])
    if table.num_rows == 0:
        raise DataError(f"{origin} holds no rows")
    for column in spec.columns:
        texts = table[column]
        if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
            raise DataError(f"{origin}: column {column!r} must hold text, found {texts.type}")
        if texts.null_count:
            raise DataError(f"{origin}: column {column!r} has {texts.null_count} missing values")
    labels = table["label"]
    if labels.null_count:
        raise DataError(f"{origin}: column 'label' has {labels.null_count} missing values")
    if spec.labels is None:
        if not pa.types.is_floating(labels.type) and not pa.types.is_integer(labels.type):
            raise DataError(f"{origin}: labels of {task!r} must be numbers, found {labels.type}")
        if not pc.all(pc.is_finite(labels)).as_py():  # min_max ignores NaN
            raise DataError(f"{origin}: labels of {task!r} must be finite numbers")
        low, high = pc.min_max(labels).as_py().values()
        if not (low >= 0 and high <= 5):
            raise DataError(f"{origin}: labels of {task!r} must lie in 0..5, found {low}..{high}")
        labels = labels.cast(pa.float32())
    else:
        if not pa.types.is_integer(labels.type):
            raise DataError(
                f"{origin}: labels of {task!r} must be integer codes, found {labels.type}"
            )
        found = sorted(pc.unique(labels).to_pylist())
        allowed = list(range(len(spec.labels)))
        if not set(found) <= set(allowed):
            raise DataError(
                f"{origin}: labels of {task!r} must be in {allowed} = {list(spec.labels)}, found "
                f"{found}; hidden test labels are -1"
            )
        labels = labels.cast(pa.int64())
    return table.set_column(table.column_names.index("label"), "label", labels)


def read_hub_split(
    hub: str, revision: str, task: str, split: str, rows: int | None = None
) -> pa.Table:
    """Same as :func:`read_split`, from the hub at a pinned revision.

    Raises:
        DataError: the hub cannot be reached, the id or revision is unknown, or see
            :func:`read_split`.
    """
    import datasets

    spec = task_named(task)
    name = spec.validation if split == "validation" else split
    try:
        loaded = datasets.load_dataset(hub, task, revision=revision, split=name)
    except Exception as error:  # the hub client raises many kinds of errors
        raise DataError(
            f"cannot load {hub!r} at {revision} for task {task!r} ({type(error).__name__}: "
            f"{error}); check the network, or download it elsewhere and set data.path to the folder"
        ) from error
    return checked(loaded.data.table, task, f"{hub}@{revision}/{task}/{name}").slice(0, rows)


def describe_split(folder: str | Path, task: str, split: str) -> dict[str, Any]:
    """A record's entry on a table: its SHA-256 and, if given, its status."""
    import pyarrow.parquet as pq

    path = split_path(folder, task, split)
    metadata = pq.read_schema(path).metadata or {}
    status = metadata.get(b"split_status")
    return {
        "sha256": file_digest(path),
        "status": status.decode() if status else "unstated",
    }
