"""Measures of a tier's results: one number for each run or pair of runs.

A measure takes the evidence and the arguments of a test, and returns values by unit (task and seed,
or a single one). It does not know the bound; :mod:`finegates.suite.claims.audit` computes verdicts.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from finegates.suite.claims.evidence import Evidence, MissingEvidenceError
from finegates.suite.claims.llama_measures import (
    LLAMA_PRETRAINING,
    LLAMA_TASK,
    llama_removed,
    llama_score_difference,
    pretraining_extra,
    pretraining_faster,
    pretraining_removed,
)
from finegates.suite.claims.measured import (
    RUNS,
    Measured,
    Unit,
    by_run,
    paired_difference,
    records_of,
    rows_of,
)
from finegates.suite.claims.time_measures import deployed_time_saved, time_saved
from finegates.suite.config.suggest import nearest
from finegates.suite.config.tasks import task_named
from finegates.suite.paired_rows import paired_error
from finegates.suite.stats import sampling_error

if TYPE_CHECKING:
    pass


SHARED_ENCODER = "studies/shared_encoder.csv"
PROPERTIES = "timing/properties.csv"
THEORY = "theory/verdicts.csv"


def score_difference(
    evidence: Evidence, method: str, against: str, epoch: str = "last", study: str | None = None
) -> Measured:
    """Score of a method minus that of another, paired by run, in points.

    Args:
        evidence: results of a tier.
        method: label of the method.
        against: label of the other method.
        epoch: ``last``, or ``best``: selected on the reported split, thus optimistic.
        study: name of a study; the main table if None.
    """
    found = paired_difference(evidence, method, against, f"{epoch}_score", 1.0, "points", study)
    both = (method, against)
    paired = {unit: _paired_error(evidence, unit, both, epoch) for unit in found.values}
    errors = {unit: error for unit, error in paired.items() if error is not None}
    if len(errors) == len(found.values):
        return replace(found, row_errors=errors, paired=True)
    each = [_row_errors(evidence, label, f"{epoch}_score", study) for label in both]
    # As if the two scores had independent test rows. They share them, so this is an upper bound.
    drawn = {unit: math.hypot(each[0][unit], each[1][unit]) for unit in found.values}
    return replace(found, row_errors=drawn)


def _paired_error(
    evidence: Evidence, unit: Unit, methods: tuple[str, str], epoch: str
) -> float | None:
    """Standard error of a score difference on the same rows, None without predictions."""
    task, seed = unit
    frames = [evidence.predictions(f"runs/{task}/{method}/seed{seed}.json") for method in methods]
    first, second = frames
    if first is None or second is None:
        return None
    name = f"{epoch}_prediction"
    if not first["row"].equals(second["row"]) or name not in first or name not in second:
        return None
    labels, one, other = (c.to_numpy() for c in (first["label"], first[name], second[name]))
    return paired_error(str(task), labels, one, other)


def _row_errors(
    evidence: Evidence, method: str, column: str, study: str | None
) -> dict[Unit, float]:
    """Standard errors of a method's scores from sampling test rows, by run."""
    rows = by_run(evidence, method, "validation_rows", study)
    errors = {}
    for unit, score in by_run(evidence, method, column, study).items():
        correlation = task_named(str(unit[0])).correlates
        errors[unit] = sampling_error(score, int(rows[unit]), correlation=correlation)
    return errors


def gate_difference(
    evidence: Evidence, method: str, against: str, kind: str, study: str | None = None
) -> Measured:
    """Difference in a fraction of gates, in percentage points.

    It is paired by task and seed. ``kind`` is ``closed``, ``open``, ``half_open`` or ``reopened``
    (closed at one inspection and open at a later one).
    """
    unit = "% of gates"
    return paired_difference(evidence, method, against, f"gates_{kind}", 100.0, unit, study)


def removed_share(evidence: Evidence, method: str, of: str) -> Measured:
    """Percentage of closed weights, of the gated, encoder or all parameters."""
    column = {"gated": "gated_parameters", "encoder": "encoder_parameters", "all": "parameters"}[of]
    removed = by_run(evidence, method, "removed_weights")
    whole = by_run(evidence, method, column)
    values = {unit: 100 * removed[unit] / whole[unit] for unit in removed}
    return Measured(values, f"% of {of} parameters", records_of(method))


def macs_removed(evidence: Evidence, method: str, study: str | None = None) -> Measured:
    """Percentage of the encoder's MACs that compaction removes."""
    kept = by_run(evidence, method, "macs_kept_fraction", study)
    values = {unit: 100 * (1 - fraction) for unit, fraction in kept.items()}
    return Measured(values, "% of MACs", records_of(method, study=study))


def shared_encoder_change(evidence: Evidence, method: str) -> Measured:
    """Score on the shared encoder minus that of the task's run, in points."""
    rows = rows_of(evidence.table(SHARED_ENCODER), method, SHARED_ENCODER)
    scores = zip(rows["task"], rows["shared_score"], rows["run_score"], strict=True)
    values: dict[Unit, float] = {(task,): float(a) - float(b) for task, a, b in scores}
    return Measured(values, "points", (SHARED_ENCODER,))


def task_storage(evidence: Evidence, method: str) -> Measured:
    """Storage of a task with a shared encoder, in percent of a full model."""
    rows = rows_of(evidence.table(SHARED_ENCODER), method, SHARED_ENCODER)
    sizes = zip(rows["task"], rows["stored_bytes"], rows["dense_bytes"], strict=True)
    values: dict[Unit, float] = {(task,): 100 * float(a) / float(b) for task, a, b in sizes}
    return Measured(values, "% of the model", (SHARED_ENCODER,), counted=True)


def property_value(evidence: Evidence, method: str, column: str, scale: float = 100.0) -> Measured:
    """A cell of the table of properties, times ``scale``."""
    value = rows_of(evidence.table(PROPERTIES), method, PROPERTIES)[column].iloc[0]
    if value != value:
        raise MissingEvidenceError(f"no {column} of {method} in {PROPERTIES}")
    values: dict[Unit, float] = {(method,): scale * float(value)}
    return Measured(values, column.replace("_", " "), (PROPERTIES,), counted=True)


def sparsity_gained(evidence: Evidence, method: str) -> Measured:
    """Realised sparsity, last minus first epoch, in percentage points."""
    row = rows_of(evidence.table(PROPERTIES), method, PROPERTIES).iloc[0]
    gained = 100 * (float(row["last_epoch"]) - float(row["first_epoch"]))
    return Measured({(method,): gained}, "% of gated weights", (PROPERTIES,))


def trainable_share(evidence: Evidence, method: str, head: bool = False) -> Measured:
    """Percentage of all parameters that are trained.

    The task head counts with ``head`` only.
    """
    trained = _trained(evidence, method, head)
    whole = by_run(evidence, method, "parameters")
    values = {unit: 100 * count / whole[unit] for unit, count in trained.items()}
    return Measured(values, "% of all parameters", records_of(method), counted=True)


def trainable_ratio(
    evidence: Evidence, method: str, against: str, head: bool = False, times: float = 1.0
) -> Measured:
    """Trained parameters of another method divided by those of a method.

    Args:
        evidence: results of a tier.
        method: label of the method.
        against: label of the other method.
        head: count task heads, too.
        times: factor on the other's count, such as another rank of LoRA.
    """
    few, many = (_trained(evidence, label, head) for label in (method, against))
    values = {unit: times * many[unit] / count for unit, count in few.items() if unit in many}
    if not values:
        raise MissingEvidenceError(f"no task and seed with both {method} and {against}")
    return Measured(values, "times fewer", records_of(method, against), counted=True)


def half_open(evidence: Evidence, method: str) -> Measured:
    """Percentage of gates strictly between 0.05 and 0.95 after training."""
    shares = by_run(evidence, method, "gates_half_open")
    values = {unit: 100 * share for unit, share in shares.items()}
    return Measured(values, "% of gates", records_of(method))


def compaction_difference(evidence: Evidence, method: str) -> Measured:
    """Largest difference of a logit between the gated and the compact model."""
    values = by_run(evidence, method, "compact_max_abs_logit_difference")
    return Measured(values, "largest difference of a logit", records_of(method), counted=True)


def theory_claim(evidence: Evidence, claim: str, part: str = "") -> Measured:
    """The verdict of the theory on a part of a claim of the paper, with the checks behind it.

    Args:
        evidence: results of a tier.
        claim: name of the claim in the theory.
        part: name of the part; empty if the claim has only one.
    """
    table = evidence.table(THEORY)
    named = table["part"].map(lambda cell: cell if isinstance(cell, str) else "")
    found = table[(table["claim"] == claim) & (named == part)]
    if found.empty:
        raise MissingEvidenceError(f"{THEORY} has no verdict on {part or 'all'} of {claim!r}")
    row = found.iloc[0]
    findings = str(row["checks"]).replace("`", "")
    return Measured({}, "", (THEORY,), verdict=str(row["verdict"]), findings=findings)


MEASURES: dict[str, Callable[..., Measured]] = {
    measure.__name__: measure
    for measure in (
        score_difference,
        gate_difference,
        removed_share,
        macs_removed,
        deployed_time_saved,
        shared_encoder_change,
        task_storage,
        property_value,
        sparsity_gained,
        trainable_share,
        trainable_ratio,
        half_open,
        compaction_difference,
        time_saved,
        theory_claim,
        llama_removed,
        llama_score_difference,
        pretraining_removed,
        pretraining_extra,
        pretraining_faster,
    )
}


def model_parameters(evidence: Evidence, measure: str) -> int:
    """Number of parameters of the largest model behind a measure."""
    tables = {"llama": (LLAMA_TASK, "all"), "pretraining": (LLAMA_PRETRAINING, "all")}
    name, column = tables.get(measure.partition("_")[0], (RUNS, "parameters"))
    table = evidence.table(name)
    if column not in table:
        raise MissingEvidenceError(f"no {column} in {name}")
    return int(table[column].max())


def check_arguments(measure: str, arguments: dict[str, Any]) -> None:
    """Raises ValueError unless the measure exists and takes these arguments."""
    if measure not in MEASURES:
        raise ValueError(f"unknown measure {measure!r}{nearest(measure, MEASURES)}")
    signature = inspect.signature(MEASURES[measure])
    known = [name for name in signature.parameters if name != "evidence"]
    for name in arguments:
        if name not in known:
            raise ValueError(f"measure {measure!r} takes no {name!r}{nearest(name, known)}")
    for name in known:
        if signature.parameters[name].default is inspect.Parameter.empty and name not in arguments:
            raise ValueError(f"measure {measure!r} needs {name!r}")


def _trained(evidence: Evidence, method: str, head: bool) -> dict[Unit, float]:
    counts = by_run(evidence, method, "trainable_parameters")
    if head:
        return counts
    heads = by_run(evidence, method, "head_parameters")
    return {unit: count - heads[unit] for unit, count in counts.items()}
