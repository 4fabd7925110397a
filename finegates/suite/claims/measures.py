"""Measures of a tier's results: one number for each run or pair of runs.

A measure takes the evidence and the arguments of a test, and returns values by unit (task and seed,
or a single one). It does not know the bound; :mod:`finegates.suite.claims.audit` computes verdicts.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from finegates.suite.claims.evidence import Evidence, MissingEvidenceError, NoisyEvidenceError
from finegates.suite.config.suggest import nearest
from finegates.suite.config.tasks import task_named
from finegates.suite.paired_rows import paired_error
from finegates.suite.stats import paired_differences, sampling_error
from finegates.suite.timing.control import CONTROL, is_noisy

if TYPE_CHECKING:
    import pandas as pd

Unit = tuple[object, ...]

RUNS = "tables/runs.csv"
STUDY_TIMES = "timing/deployed.csv"
SHARED_ENCODER = "studies/shared_encoder.csv"
PROPERTIES = "timing/properties.csv"
INFERENCE = "timing/inference.csv"
THEORY = "theory/checks.csv"
PROVED = {"proved": "supported", "disproved": "contradicted", "proved in part": "partly"}
"""What a theorem says of a claim, in the words of a measured verdict."""
LLAMA_TASK = "llama/tables/task.csv"
LLAMA_PRETRAINING = "llama/tables/pretraining.csv"


@dataclass(frozen=True)
class Measured:
    """The values of a measure.

    Attributes:
        values: values by unit, at least one.
        unit: unit of the values for print, such as points.
        files: source files, relative to the tier's results folder.
        row_errors: by unit, the standard error of the value from sampling test rows; None for
            values that are not computed from test rows. Units are then pairs of task and seed,
            and the mean is over a fixed set of tasks.
        paired: whether ``row_errors`` are those of row-wise differences instead of independent
            samples.
        ranges: by unit, bounds of the value from repeated measurements, if there are any.
        counted: whether values are counts and sizes, independent of seeds and test rows.
        verdicts: verdicts of measures that judge themselves; empty for numbers.
    """

    values: dict[Unit, float]
    unit: str
    files: tuple[str, ...]
    row_errors: dict[Unit, float] | None = None
    paired: bool = False
    ranges: dict[Unit, tuple[float, float]] | None = None
    counted: bool = False
    verdicts: tuple[str, ...] = ()


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
    found = _difference(evidence, method, against, f"{epoch}_score", 1.0, "points", study)
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
    rows = _by_run(evidence, method, "validation_rows", study)
    errors = {}
    for unit, score in _by_run(evidence, method, column, study).items():
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
    return _difference(evidence, method, against, f"gates_{kind}", 100.0, unit, study)


def removed_share(evidence: Evidence, method: str, of: str) -> Measured:
    """Percentage of closed weights, of the gated, encoder or all parameters."""
    column = {"gated": "gated_parameters", "encoder": "encoder_parameters", "all": "parameters"}[of]
    removed = _by_run(evidence, method, "removed_weights")
    whole = _by_run(evidence, method, column)
    values = {unit: 100 * removed[unit] / whole[unit] for unit in removed}
    return Measured(values, f"% of {of} parameters", _records(method))


def macs_removed(evidence: Evidence, method: str, study: str | None = None) -> Measured:
    """Percentage of the encoder's MACs that compaction removes."""
    kept = _by_run(evidence, method, "macs_kept_fraction", study)
    values = {unit: 100 * (1 - fraction) for unit, fraction in kept.items()}
    return Measured(values, "% of MACs", _records(method, study=study))


def deployed_time_saved(evidence: Evidence, method: str) -> Measured:
    """Percentage of the dense forward pass's time that a deployed model saves."""
    table = evidence.table(STUDY_TIMES)
    _check_control(table[table["method"] == CONTROL], STUDY_TIMES)
    found, dense = (_rows(table, name, STUDY_TIMES).iloc[0] for name in (method, "dense"))
    saved = 100 * (1 - float(found["ratio_to_dense"]))
    unit = (method,)
    ranges: dict[Unit, tuple[float, float]] = {unit: _saved(found, dense)}
    return Measured({unit: saved}, "% of the time", (STUDY_TIMES,), ranges=ranges)


def _check_control(control: pd.DataFrame, name: str) -> None:
    """Raises NoisyEvidenceError if the dense model, timed twice, differs from itself."""
    off = [ratio - 1 for ratio in control["ratio_to_dense"] if is_noisy(ratio)]
    if off:
        worst = max(off, key=abs)
        raise NoisyEvidenceError(
            f"in {name} the dense model, timed twice, differs from itself by {100 * worst:+.0f} %; "
            "measure again on a quiet machine"
        )


def _saved(found: Any, dense: Any) -> tuple[float, float]:
    """Bounds of the saved time, in percent.

    They compare each quartile of repeated passes with the opposite quartile of the dense model.
    """
    low = 100 * (1 - float(found["q75_ms"]) / float(dense["q25_ms"]))
    return low, 100 * (1 - float(found["q25_ms"]) / float(dense["q75_ms"]))


def shared_encoder_change(evidence: Evidence, method: str) -> Measured:
    """Score on the shared encoder minus that of the task's run, in points."""
    rows = _rows(evidence.table(SHARED_ENCODER), method, SHARED_ENCODER)
    scores = zip(rows["task"], rows["shared_score"], rows["run_score"], strict=True)
    values: dict[Unit, float] = {(task,): float(a) - float(b) for task, a, b in scores}
    return Measured(values, "points", (SHARED_ENCODER,))


def task_storage(evidence: Evidence, method: str) -> Measured:
    """Storage of a task with a shared encoder, in percent of a full model."""
    rows = _rows(evidence.table(SHARED_ENCODER), method, SHARED_ENCODER)
    sizes = zip(rows["task"], rows["stored_bytes"], rows["dense_bytes"], strict=True)
    values: dict[Unit, float] = {(task,): 100 * float(a) / float(b) for task, a, b in sizes}
    return Measured(values, "% of the model", (SHARED_ENCODER,), counted=True)


def property_value(evidence: Evidence, method: str, column: str, scale: float = 100.0) -> Measured:
    """A cell of the table of properties, times ``scale``."""
    value = _rows(evidence.table(PROPERTIES), method, PROPERTIES)[column].iloc[0]
    if value != value:
        raise MissingEvidenceError(f"no {column} of {method} in {PROPERTIES}")
    values: dict[Unit, float] = {(method,): scale * float(value)}
    return Measured(values, column.replace("_", " "), (PROPERTIES,), counted=True)


def sparsity_gained(evidence: Evidence, method: str) -> Measured:
    """Realised sparsity, last minus first epoch, in percentage points."""
    row = _rows(evidence.table(PROPERTIES), method, PROPERTIES).iloc[0]
    gained = 100 * (float(row["last_epoch"]) - float(row["first_epoch"]))
    return Measured({(method,): gained}, "% of gated weights", (PROPERTIES,))


def trainable_share(evidence: Evidence, method: str, head: bool = False) -> Measured:
    """Percentage of all parameters that are trained.

    The task head counts with ``head`` only.
    """
    trained = _trained(evidence, method, head)
    whole = _by_run(evidence, method, "parameters")
    values = {unit: 100 * count / whole[unit] for unit, count in trained.items()}
    return Measured(values, "% of all parameters", _records(method), counted=True)


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
    return Measured(values, "times fewer", _records(method, against), counted=True)


def half_open(evidence: Evidence, method: str) -> Measured:
    """Percentage of gates strictly between 0.05 and 0.95 after training."""
    shares = _by_run(evidence, method, "gates_half_open")
    values = {unit: 100 * share for unit, share in shares.items()}
    return Measured(values, "% of gates", _records(method))


def compaction_difference(evidence: Evidence, method: str) -> Measured:
    """Largest difference of a logit between the gated and the compact model."""
    values = _by_run(evidence, method, "compact_max_abs_logit_difference")
    return Measured(values, "largest difference of a logit", _records(method), counted=True)


def time_saved(
    evidence: Evidence,
    contender: str = "compact",
    gates: str = "random",
    kept: float | None = None,
    model: str | None = None,
) -> Measured:
    """Percentage of the dense model's eager forward time that is saved.

    Args:
        evidence: results of a tier.
        contender: ``compact``, or ``gated`` for the gated model before compaction.
        gates: ``random`` or ``structured``.
        kept: only cases that keep this fraction; all if None.
        model: only this shape; all if None.
    """
    table = evidence.table(INFERENCE)
    chosen = table[
        (table["contender"] == contender)
        & (table["backend"] == "eager")
        & (table["gates"] == gates)
        & ~table["decode"].astype(bool)
    ]
    if kept is not None:
        chosen = chosen[(chosen["kept"] - kept).abs() < 1e-9]
    if model is not None:
        chosen = chosen[chosen["model"] == model]
    if chosen.empty:
        raise MissingEvidenceError(f"{INFERENCE} has no such case")
    dense = table[(table["contender"] == "dense") & (table["backend"] == "eager")]
    control = table[table["contender"] == CONTROL]
    values: dict[Unit, float] = {}
    ranges: dict[Unit, tuple[float, float]] = {}
    for row in chosen.to_dict("records"):
        unit = (row["model"], row["kept"], row["batch"], row["length"])
        values[unit] = 100 * (1 - row["ratio_to_dense"])
        alike = ["model", "batch", "length", "decode", "gates", "kept"]
        case = [row[name] for name in alike]
        again = (control[alike] == case).all(axis=1)
        _check_control(control[again], INFERENCE)
        same = (dense[alike] == case).all(axis=1)
        (other,) = dense[same].to_dict("records")
        ranges[unit] = _saved(row, other)
    return Measured(values, "% of the time", (INFERENCE,), ranges=ranges)


def theory_claim(evidence: Evidence, claim: str) -> Measured:
    """Verdicts of the theory's checks on a claim of the paper.

    The value is the fraction of checks that support it. Checks that a theorem decides count only
    if the claim does not have any other check.
    """
    table = evidence.table(THEORY)
    found = table[(table["claim"] == claim) & (table["kind"] == "claim")]
    found = found[found["verdict"] != "inconclusive"]
    if found.empty:
        raise MissingEvidenceError(f"{THEORY} has no check that decides the claim {claim!r}")
    proved = found["verdict"].map(PROVED)
    verdicts = tuple(found["verdict"][proved.isna()] if proved.isna().any() else proved)
    share = verdicts.count("supported") / len(verdicts)
    return Measured({(claim,): share}, "of the checks hold", (THEORY,), verdicts=verdicts)


def llama_removed(evidence: Evidence, method: str, of: str) -> Measured:
    """Percentage of a task-tuned Llama's weights that compaction removes.

    The denominator is its gated weights, its layers (``encoder``) or all parameters.
    """
    rows = _llama_rows(evidence, LLAMA_TASK, method)
    values: dict[Unit, float] = {
        (row["task"],): 100 * row[f"removed_of_{of}"] for row in rows.to_dict("records")
    }
    return Measured(values, f"% of {of} parameters", (LLAMA_TASK,))


def llama_score_difference(evidence: Evidence, method: str, against: str) -> Measured:
    """Score of a Llama by a method minus another, paired by task, in points."""

    def scores(label: str) -> dict[Unit, float]:
        rows = _llama_rows(evidence, LLAMA_TASK, label)
        return {(task,): float(s) for task, s in zip(rows["task"], rows["score"], strict=True)}

    values = paired_differences(scores(method), scores(against))
    return Measured(values, "points", (LLAMA_TASK,))


def pretraining_removed(evidence: Evidence, method: str, of: str) -> Measured:
    """Percentage of weights removed after gated pretraining, by size.

    The denominator is the ``gated`` weights or ``all`` parameters.
    """
    rows = _llama_rows(evidence, LLAMA_PRETRAINING, method)
    values: dict[Unit, float] = {
        (row["name"],): 100 * row[f"removed_of_{of}"] for row in rows.to_dict("records")
    }
    return Measured(values, f"% of {of} parameters", (LLAMA_PRETRAINING,))


def pretraining_extra(evidence: Evidence, method: str) -> Measured:
    """Gate parameters in percent of the dense model's parameters, by size."""
    rows = _llama_rows(evidence, LLAMA_PRETRAINING, method)
    shares = 100 * rows["extra_parameters_fraction"]
    values: dict[Unit, float] = {(n,): s for n, s in zip(rows["name"], shares, strict=True)}
    return Measured(values, "% of all parameters", (LLAMA_PRETRAINING,), counted=True)


def pretraining_faster(evidence: Evidence, method: str) -> Measured:
    """Speed-up in tokens of gated over dense pretraining, by size.

    It is the dense run's number of tokens divided by the number at which the gated run reaches the
    dense run's final held-out loss; 0 if it never does.
    """
    rows = _llama_rows(evidence, LLAMA_PRETRAINING, method)
    times = (rows["tokens"] / rows["tokens_to_dense_loss"]).fillna(0.0)
    values: dict[Unit, float] = {(n,): float(t) for n, t in zip(rows["name"], times, strict=True)}
    return Measured(values, "times fewer tokens", (LLAMA_PRETRAINING,))


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


def _difference(
    evidence: Evidence,
    method: str,
    against: str,
    column: str,
    scale: float,
    unit: str,
    study: str | None,
) -> Measured:
    first, second = (_by_run(evidence, label, column, study) for label in (method, against))
    found = paired_differences(first, second)
    if not found:
        raise MissingEvidenceError(f"no task and seed with both {method} and {against}")
    values = {key: scale * difference for key, difference in found.items()}
    return Measured(values, unit, _records(method, against, study=study))


def _runs_file(study: str | None) -> str:
    return RUNS if study is None else f"studies/runs/{study}.csv"


def _rows(table: pd.DataFrame, method: str, file: str) -> pd.DataFrame:
    rows = table[table["method"] == method]
    if rows.empty:
        raise MissingEvidenceError(f"no row of {method} in {file}")
    return rows


def _by_run(
    evidence: Evidence, method: str, column: str, study: str | None = None
) -> dict[Unit, float]:
    """A column of the runs of a method, by task and seed."""
    runs: pd.DataFrame = evidence.table(_runs_file(study))
    rows = runs[runs["method"] == method]
    if rows.empty:
        raise MissingEvidenceError(f"no run of {method}")
    if column not in rows:
        raise MissingEvidenceError(f"no {column} in {_runs_file(study)}")
    values = rows.set_index(["task", "seed"])[column].dropna()
    if values.empty:
        raise MissingEvidenceError(f"no {column} of {method}")
    return {unit: float(value) for unit, value in zip(values.index, values, strict=True)}


def _llama_rows(evidence: Evidence, table: str, method: str) -> pd.DataFrame:
    """A method's rows in a table of the Llama experiments."""
    return _rows(evidence.table(table), method, table)


def _trained(evidence: Evidence, method: str, head: bool) -> dict[Unit, float]:
    counts = _by_run(evidence, method, "trainable_parameters")
    if head:
        return counts
    heads = _by_run(evidence, method, "head_parameters")
    return {unit: count - heads[unit] for unit, count in counts.items()}


def _records(*methods: str, study: str | None = None) -> tuple[str, ...]:
    return (_runs_file(study), *(f"runs/*/{method}" for method in methods))
