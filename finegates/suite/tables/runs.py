"""The long table: one row per run, which the other tables summarise.

Durations vary between reruns and are left out, so that a rerun of the same study on the same
machine gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finegates.suite.runs.record import Record
from finegates.suite.tables.captions import check_study

if TYPE_CHECKING:
    import pandas as pd

SCORE_DECIMALS = 4
FRACTION_DECIMALS = 6

INTEGERS = (
    "seed",
    "last_epoch",
    "best_epoch",
    "train_rows",
    "validation_rows",
    "parameters",
    "encoder_parameters",
    "gated_parameters",
    "removed_weights",
    "trainable_parameters",
    "head_parameters",
    "macs_batch",
    "macs_length",
    "encoder_macs_dense",
    "encoder_macs_kept",
    "compact_parameters",
    "compact_encoder_macs",
)


def runs_table(
    records: Sequence[Record], methods: Sequence[str], tasks: Sequence[str]
) -> pd.DataFrame:
    """One row per run, in the order of methods, tasks and seeds.

    Scores are GLUE's times 100. Sparsities and other fractions are in [0, 1]. MACs are those of the
    encoder for ``macs_batch`` x ``macs_length`` tokens. ``best_*`` is the best epoch on the
    reported split.

    Raises:
        ValueError: see :func:`finegates.suite.tables.captions.check_study`.
    """
    import pandas as pd

    frame = pd.DataFrame([_row(record) for record in check_study(records, methods, tasks)])
    for column in INTEGERS:
        frame[column] = frame[column].astype("Int64")
    return frame


def _row(record: Record) -> dict[str, Any]:
    parameters, macs = record.budget.parameters, record.budget.macs
    gates, compact = record.last.gates, record.compact
    return {
        "tier": record.tier,
        "task": record.task,
        "method": record.method,
        "title": record.config.title,
        "seed": record.seed,
        "last_score": _rounded(record.last.score, SCORE_DECIMALS),
        "last_epoch": record.last.epoch,
        "best_score": _rounded(record.best.score, SCORE_DECIMALS),
        "best_epoch": record.best.epoch,
        "target_sparsity": target_sparsity(record),
        "realised_sparsity": _rounded(record.realised_sparsity, FRACTION_DECIMALS),
        "gates_closed": _rounded(gates and gates.closed, FRACTION_DECIMALS),
        "gates_half_open": _rounded(gates and gates.half_open, FRACTION_DECIMALS),
        "gates_open": _rounded(gates and gates.open, FRACTION_DECIMALS),
        "gates_reopened": _rounded(gates and gates.reopened, FRACTION_DECIMALS),
        "train_rows": record.data.train_rows,
        "validation_rows": record.data.validation_rows,
        "parameters": parameters.all,
        "encoder_parameters": parameters.encoder,
        "gated_parameters": parameters.gated,
        "removed_weights": record.budget.removed_weights,
        "trainable_parameters": parameters.trainable,
        "head_parameters": parameters.head,
        "macs_batch": record.budget.macs_batch,
        "macs_length": record.budget.macs_length,
        "encoder_macs_dense": macs.dense,
        "encoder_macs_kept": macs.kept,
        "macs_kept_fraction": _rounded(macs.kept_fraction, FRACTION_DECIMALS),
        "compact_score": _rounded(compact and compact.score, SCORE_DECIMALS),
        "compact_max_abs_logit_difference": compact.max_abs_logit_difference if compact else None,
        "compact_parameters": compact.parameters if compact else None,
        "compact_encoder_macs": compact.encoder_macs if compact else None,
    }


def target_sparsity(record: Record) -> float | None:
    """The target sparsity of a run's penalty, None for a method without gates."""
    gates = record.config.gates
    return None if gates is None else _rounded(gates.target, FRACTION_DECIMALS)


def _rounded(value: Any, decimals: int) -> float | None:
    """Rounds without negative zero. None stays None."""
    return None if value is None else round(float(value), decimals) + 0.0
