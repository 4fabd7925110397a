"""The summary at the top of the report, composed from the numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from finegates.suite.claims import VERDICTS, ClaimResult
from finegates.suite.runs.record import Record
from finegates.suite.stats import mean


def summary_lines(records: Sequence[Record], results: Sequence[ClaimResult]) -> list[str]:
    """At most ten sentences on the runs, the findings and their limits.

    Args:
        records: records of one tier, at least one.
        results: results of :func:`finegates.suite.claims.audit`.
    """
    first = records[0]
    tasks = list(dict.fromkeys(record.task for record in records))
    seeds = sorted({record.seed for record in records})
    lines = [
        f"{len(records)} runs: {len({r.method for r in records})} methods on {len(tasks)} tasks, "
        f"{_count(len(seeds), 'seed')}; {first.config.tier_description or first.tier}.",
        _verdicts(results),
    ]
    if synthetic(records):
        lines.append(
            "All data are synthetic: the numbers show that the workflow works, nothing about "
            "language or about the paper's models."
        )
    averages = _averages(records, tasks, len(seeds))
    dense = {m: s for m, s in averages.items() if not _prunes(records, m)}
    pruned = {m: s for m, s in averages.items() if _removes(records, m)}
    if dense:
        best = max(dense, key=lambda label: dense[label])
        lines.append(
            f"Best at full size: {_title(records, best)}, {dense[best]:.1f} on average over tasks."
        )
    if pruned:
        best = max(pruned, key=lambda label: pruned[label])
        lines.append(
            f"Best of what removes weights: {_title(records, best)}, {pruned[best]:.1f} on average "
            f"with {100 * _kept(records, best):.0f} % of the encoder's MACs kept."
        )
    differences = [r.compact.max_abs_logit_difference for r in records if r.compact]
    if differences:
        lines.append(
            f"Compact and gated models differ by at most {max(differences):.1e} in a logit over "
            f"{len(differences)} runs."
        )
    if len(seeds) == 1:
        lines.append("One seed: no interval over seeds; the tables say what could be detected.")
    return lines


def synthetic(records: Sequence[Record]) -> bool:
    """Whether the workflow made all data of the runs itself."""
    return all(record.data.source == "generated" for record in records)


def _verdicts(results: Sequence[ClaimResult]) -> str:
    """Verdicts on the paper's claims and on the experiments of its digest."""
    sentences = []
    for kind, noun in (("claim", "claims"), ("experiment", "experiments that its digest proposes")):
        found = [result.verdict for result in results if result.claim.kind == kind]
        counts = Counter(found)
        listed = ", ".join(f"{counts[name]} {name}" for name in VERDICTS if counts[name])
        if found:
            sentences.append(f"Of {len(found)} {noun}: {listed}.")
    return " ".join(sentences)


def _averages(records: Sequence[Record], tasks: Sequence[str], seeds: int) -> dict[str, float]:
    """Means over tasks of the methods for which no task or seed is missing."""
    scores: dict[str, list[float]] = {}
    for record in records:
        scores.setdefault(record.method, []).append(record.last.score)
    return {m: mean(s) for m, s in scores.items() if len(s) == len(tasks) * seeds}


def _kept(records: Sequence[Record], method: str) -> float:
    return mean(r.budget.macs.kept_fraction for r in records if r.method == method)


def _prunes(records: Sequence[Record], method: str) -> bool:
    return next(r.config for r in records if r.method == method).is_pruned


def _removes(records: Sequence[Record], method: str) -> bool:
    return any(r.realised_sparsity > 0 for r in records if r.method == method)


def _title(records: Sequence[Record], method: str) -> str:
    return next(r.config.title for r in records if r.method == method)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
