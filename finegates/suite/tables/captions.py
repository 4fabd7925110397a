"""Captions of tables and figures, composed from run records.

A caption names the tier, model, data, rows, metrics, epochs, seeds and hardware of the numbers, and
the splits that are not official.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from finegates.suite.config.tasks import TASKS
from finegates.suite.runs.record import Record
from finegates.suite.runs.run_record import DIGEST_DIGITS
from finegates.suite.stats import LEVEL

TASK_TITLES = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "stsb": "STS-B",
    "qqp": "QQP",
    "mnli": "MNLI",
    "qnli": "QNLI",
    "rte": "RTE",
}

METRIC_TITLES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}

COMPLETE = "official-complete"
"""Status of a split that holds the official rows in the official order."""


def task_title(task: str) -> str:
    """GLUE's spelling of a task's name."""
    return TASK_TITLES.get(task, task)


def metric_title(task: str) -> str:
    """The task's metric in words, as a mean if GLUE averages two."""
    names = [METRIC_TITLES.get(name, name) for name in TASKS[task].metrics]
    if len(names) == 1:
        return names[0]
    if all(name.endswith(" correlation") for name in names):
        names = [name.removesuffix(" correlation") for name in names[:-1]] + names[-1:]
    return f"mean of {' and '.join(names)}"


def check_study(
    records: Sequence[Record], methods: Sequence[str], tasks: Sequence[str]
) -> list[Record]:
    """Sorts records by method, task and seed.

    Raises:
        ValueError: there are no records, records of several tiers, two with the same task, method
            and seed, or one whose task or method is not listed, which would silently be dropped.
    """
    if not records:
        raise ValueError("no run records: a table needs at least one")
    tiers = sorted({record.tier for record in records})
    if len(tiers) > 1:
        raise ValueError(f"records of several tiers, {tiers}, do not belong in one table")
    seen: set[tuple[str, str, int]] = set()
    for record in records:
        key = (record.task, record.method, record.seed)
        if key in seen:
            raise ValueError(f"two records of task, method and seed {key}")
        seen.add(key)
        if record.method not in methods:
            raise ValueError(
                f"record of method {record.method!r}, which is none of {list(methods)}"
            )
        if record.task not in tasks:
            raise ValueError(f"record of task {record.task!r}, which is none of {list(tasks)}")
    order = {name: place for place, name in enumerate(methods)}
    places = {name: place for place, name in enumerate(tasks)}
    return sorted(records, key=lambda r: (order[r.method], places[r.task], r.seed))


def table_caption(
    lead: str, records: Sequence[Record], methods: Sequence[str], tasks: Sequence[str]
) -> str:
    """A table's caption: ``lead``, then the origin of the records.

    Raises:
        ValueError: see :func:`check_study`.
    """
    ordered = check_study(records, methods, tasks)
    present = [task for task in tasks if any(r.task == task for r in ordered)]
    return " ".join(
        [
            lead,
            _tier(ordered),
            _models(ordered),
            *_data(ordered),
            *_rows(ordered, present),
            *_partial_splits(ordered, present),
            _metrics(present),
            _training(ordered, present),
            _seeds(ordered),
            *_commits(ordered),
            _hardware(ordered),
        ]
    )


def figure_footer(
    lead: str, records: Sequence[Record], methods: Sequence[str], tasks: Sequence[str]
) -> str:
    """The shorter caption inside a figure.

    Raises:
        ValueError: see :func:`check_study`.
    """
    ordered = check_study(records, methods, tasks)
    present = [task for task in tasks if any(r.task == task for r in ordered)]
    parts = [lead, _tier(ordered), _models(ordered), *_data(ordered)]
    if not _synthetic(ordered):
        partial = [
            f"{task_title(task)} {split} ({status.split(':')[0]})"
            for task, split, status in _statuses(ordered, present)
            if status != COMPLETE
        ]
        if partial:
            parts.append(f"Not the official splits: {'; '.join(partial)}.")
    rows = max(record.data.train_rows for record in ordered)
    parts.append(f"At most {rows:,} training rows, the first of each split.")
    parts.append(_seeds(ordered))
    return " ".join(parts)


def _tier(records: Sequence[Record]) -> str:
    description = _joined(record.config.tier_description for record in records)
    name = records[0].tier
    return f"Tier {name}: {description.rstrip('.')}." if description else f"Tier {name}."


def _models(records: Sequence[Record]) -> str:
    return f"Model: {_joined(_model(record) for record in records)}."


def _model(record: Record) -> str:
    here = record.model.source in ("generated", "pretraining")
    facts = [
        *(["pretrained here on generated text"] if here else []),
        # Encoder parameters, because heads differ between tasks.
        f"{record.budget.parameters.encoder:,} encoder parameters",
        *record.model.identity,
    ]
    return f"{record.model.name} ({', '.join(facts)})"


def _synthetic(records: Sequence[Record]) -> bool:
    return all(record.data.source == "generated" for record in records)


def _data(records: Sequence[Record]) -> list[str]:
    """One sentence per data source, with its revision or a digest of its files."""
    names = _distinct((r.data.name, r.data.source, r.data.revision) for r in records)
    sentences = []
    for name, source, revision in names:
        if source == "generated":
            sentences.append(
                f"Data: {name}, synthetic: generated sentences in the format of GLUE's tasks; "
                "the scores are not GLUE scores."
            )
        elif revision:
            sentences.append(f"Data: {name}, revision {revision[:DIGEST_DIGITS]}.")
        else:
            files = sorted(
                f"{r.task}/{split}:{facts.sha256}"
                for r in records
                if (r.data.name, r.data.source) == (name, source)
                for split, facts in r.data.splits.items()
            )
            digest = hashlib.sha256("\n".join(dict.fromkeys(files)).encode()).hexdigest()
            sentences.append(f"Data: {name}, digest of its files {digest[:DIGEST_DIGITS]}.")
    return sentences


def _rows(records: Sequence[Record], tasks: Sequence[str]) -> list[str]:
    official = not _synthetic(records)

    def train(task: str) -> str:
        rows = _joined(f"{r.data.train_rows:,}" for r in records if r.task == task)
        whole = f"{TASKS[task].train_rows:,}"
        return f"{rows} of {whole}" if official and rows != whole else rows

    def validation(task: str) -> str:
        return _joined(
            f"{r.data.validation_rows:,}"
            + (" (matched)" if r.data.validation_split.endswith("_matched") else "")
            for r in records
            if r.task == task
        )

    return [
        f"Training rows (a limit takes the first ones): {_by_task(tasks, train)}.",
        f"Validation rows: {_by_task(tasks, validation)}.",
    ]


def _statuses(records: Sequence[Record], tasks: Sequence[str]) -> list[tuple[str, str, str]]:
    """Task, split and status of every split, without repeats."""
    return [
        (task, split, status)
        for task in tasks
        for split, status in _distinct_splits(r for r in records if r.task == task)
    ]


def _distinct_splits(records: Iterable[Record]) -> list[tuple[str, str]]:
    return _distinct(
        (name, record.data.splits[split].status)
        for record in records
        for split, name in (("train", "train"), ("validation", record.data.validation_split))
    )


def _partial_splits(records: Sequence[Record], tasks: Sequence[str]) -> list[str]:
    if _synthetic(records):
        return []
    partial = [s for s in _statuses(records, tasks) if s[2] != COMPLETE]
    if not partial:
        return ["All splits hold the official rows."]
    listed = "; ".join(f"{task_title(task)} {split} [{status}]" for task, split, status in partial)
    return [f"Splits that are not the complete official ones: {listed}."]


def _metrics(tasks: Sequence[str]) -> str:
    listed = _grouped(tasks, metric_title)
    return f"Metrics, times 100: {listed}."


def _training(records: Sequence[Record], tasks: Sequence[str]) -> str:
    def epochs(task: str) -> str:
        return _joined(str(record.last.epoch) for record in records if record.task == task)

    def precision(record: Record) -> str:
        chosen = record.config.precision or record.config.training.precision
        return "bfloat16 autocast" if chosen == "bfloat16" else "float32"

    batch = _joined(str(r.config.training.batch_size) for r in records)
    number = _joined(map(precision, records))
    return f"Epochs: {_grouped(tasks, epochs)}; batch size {batch}; {number}."


def _seeds(records: Sequence[Record]) -> str:
    seeds = sorted({record.seed for record in records})
    if len(seeds) == 1:
        return f"One seed ({seeds[0]}), so no interval."
    listed = ", ".join(str(seed) for seed in seeds)
    return (
        f"Seeds {listed}: mean ± half the width of a {LEVEL:.0%} t interval over seeds, "
        "where there are several."
    )


def _commits(records: Sequence[Record]) -> list[str]:
    """A warning if the compared runs were made by different code."""
    commits = sorted({record.code.short_commit for record in records})
    if len(commits) == 1:
        return []
    return [f"Runs of {len(commits)} commits of the code: {', '.join(commits)}."]


def _hardware(records: Sequence[Record]) -> str:
    return f"Hardware: {_joined(str(record.hardware) for record in records)}."


def _by_task(tasks: Sequence[str], text: Callable[[str], str]) -> str:
    return "; ".join(f"{task_title(task)} {text(task)}" for task in tasks)


def _grouped(tasks: Sequence[str], text: Callable[[str], str]) -> str:
    """Groups tasks by text, ``3 (CoLA, RTE); 8 (MRPC)``, or the text alone if all agree."""
    groups: dict[str, list[str]] = {}
    for task in tasks:
        groups.setdefault(text(task), []).append(task_title(task))
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{name} ({', '.join(members)})" for name, members in groups.items())


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _joined(texts: Iterable[str]) -> str:
    return " / ".join(_distinct(text for text in texts if text))
