"""A run's predictions of every validation row, in a Parquet file next to its record."""

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
    """What a record says of its file of predictions: SHA-256, and number of rows."""

    sha256: str
    rows: Count


def predictions_path(record: str | Path) -> Path:
    """Where the predictions of a run are stored, by the path of its record."""
    return Path(record).with_suffix(SUFFIX)


def expected_predictions(records: Iterable[str | Path]) -> list[str]:
    """The files of predictions that runs leave, for jobs that read them.

    Args:
        records: paths of records, of runs that are still to be made, too.

    Returns:
        a path a record, in their order, without those of records that name no file.
    """
    return [str(predictions_path(path)) for path in records if not _names_none(Path(path))]


def _names_none(record: Path) -> bool:
    if not record.is_file():
        return False
    try:
        return signed_values(record).get("predictions") is None
    except RecordError:
        return False  # its reader raises


def write_predictions(
    path: str | Path,
    task: str,
    rows: np.ndarray,
    labels: np.ndarray,
    logits: Mapping[str, np.ndarray],
) -> Predictions:
    """Writes predictions whole or not at all; the same values are the same bytes.

    The columns are ``row``, ``label`` and for each evaluation ``<name>_prediction`` and
    ``<name>_logits``, in the order of rows. Labels and predictions are int64 class codes, float32
    similarities for regression.

    Args:
        path: of the file.
        task: GLUE's name.
        rows: place of each row in the validation split that was used, shape (rows,).
        labels: of the rows, shape (rows,).
        logits: by name of the evaluation, each of shape (rows, outputs); stored as float32.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Imported here, because readers of records do not need torch.
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
    """The file of a run's predictions; None if its record names none.

    Args:
        record: path of the record of any run.

    Raises:
        RecordError: the record cannot be read, or the file is missing or is not the one that the
            record names.
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
    """Reads a run's predictions: the columns of :func:`write_predictions`, a row a validation row.

    Argument, None and errors as for :func:`checked_predictions`.
    """
    import pandas as pd

    path = checked_predictions(record)
    return None if path is None else pd.read_parquet(path)
