"""Predictions for all validation rows, as Parquet next to a record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finegates.files import file_digest, whole_file
from finegates.suite.config.section import Count, Section
from finegates.suite.config.tasks import task_named
from finegates.suite.runs.signed import RecordError, signed_values

if TYPE_CHECKING:
    import pandas as pd

SUFFIX = ".predictions.parquet"


class Predictions(Section):
    """SHA-256 and number of rows of a file of predictions, in its record."""

    sha256: str
    rows: Count


def predictions_path(record: str | Path) -> Path:
    """The path of a run's predictions from the path of its record."""
    return Path(record).with_suffix(SUFFIX)


def expected_predictions(records: Iterable[str | Path]) -> list[str]:
    """The files of predictions of some runs, for jobs that read them.

    Args:
        records: paths of records, also of runs that are not done yet.

    Returns:
        one path per record, in their order; records without predictions are skipped.
    """
    return [str(predictions_path(path)) for path in records if not _names_none(Path(path))]


def _names_none(record: Path) -> bool:
    if not record.is_file():
        return False
    try:
        return signed_values(record).get("predictions") is None
    except RecordError:
        return False  # the job that reads the record raises the error


def write_predictions(
    path: str | Path,
    task: str,
    rows: np.ndarray,
    labels: np.ndarray,
    logits: Mapping[str, np.ndarray],
) -> Predictions:
    """Writes predictions atomically. Equal values give equal bytes.

    The columns are ``row``, ``label`` and, for each evaluation, ``<name>_prediction`` and
    ``<name>_logits``. The file is sorted by row. Labels and predictions are int64 class codes, or
    float32 similarities for regression.

    Args:
        path: file to write.
        task: GLUE's name.
        rows: index of each row in the validation split that was used, shape (rows,).
        labels: labels of the rows, shape (rows,).
        logits: logits by name of the evaluation, shape (rows, outputs); stored as float32.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Imported here, so that reading records does not import torch.
    from finegates.suite.runs.metrics import predictions_from_logits

    kind = pa.float32() if task_named(task).labels is None else pa.int64()
    order = np.argsort(rows)
    columns = {
        "row": pa.array(rows[order], pa.int64()),
        "label": pa.array(labels[order], kind),
    }
    for name, values in logits.items():
        ordered = np.asarray(values, dtype=np.float32)[order]  # (rows, outputs)
        columns[f"{name}_prediction"] = pa.array(predictions_from_logits(task, ordered), kind)
        columns[f"{name}_logits"] = pa.FixedSizeListArray.from_arrays(
            pa.array(ordered.reshape(-1), pa.float32()), ordered.shape[1]
        )
    with whole_file(path) as aside:
        pq.write_table(pa.table(columns), aside, compression="zstd")
    return Predictions(sha256=file_digest(path), rows=len(rows))


def checked_predictions(record: str | Path) -> Path | None:
    """The file of a run's predictions, None if its record does not have one.

    Args:
        record: path of the record of any run.

    Raises:
        RecordError: the record cannot be read, or the file is missing or does not have the
            SHA-256 in the record.
    """
    named = signed_values(record).get("predictions")
    if named is None:
        return None
    path = predictions_path(record)
    if not path.is_file():
        raise RecordError(f"{path} is missing, which {record} names; delete both and run again")
    if not isinstance(named, dict) or file_digest(path) != named.get("sha256"):
        raise RecordError(
            f"{path} is damaged: its SHA-256 is not the one that {record} names; delete both and "
            "run again"
        )
    return path


def read_predictions(record: str | Path) -> pd.DataFrame | None:
    """Reads a run's predictions, one row per validation row.

    Columns are those of :func:`write_predictions`. Argument, None and errors are those of
    :func:`checked_predictions`.
    """
    import pandas as pd

    path = checked_predictions(record)
    return None if path is None else pd.read_parquet(path)
