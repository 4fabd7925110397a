"""Several tasks on one frozen encoder: scores, and storage for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finegates.formats.task import load_task
from finegates.seeds import derive_seed
from finegates.suite.config.tasks import task_named
from finegates.suite.config.tier import Tier
from finegates.suite.models.sources import load_classifier, load_tokenizer
from finegates.suite.runs.finetune import TaskData, predict
from finegates.suite.runs.metrics import GlueMetric, predictions_from_logits, score
from finegates.suite.runs.preparation import prepare
from finegates.suite.runs.record import Record
from finegates.suite.stats import mean
from finegates.suite.tables.captions import table_caption, task_title
from finegates.suite.tables.render import Column, Table, decimals, number
from finegates.suite.tables.runs import SCORE_DECIMALS

_LEAD = (
    "The gates, adapters, biases and head of every task are put, task after task, into one frozen "
    "encoder, which is then evaluated in float32 (one encoder for each number of labels, for the "
    "head has another shape). Runs: the average of the runs themselves after their last epoch. "
    "Stored: a task's file. All tasks: the encoder once and every task's file, relative to a "
    "fine-tuned model for each task. Left behind: largest change of a logit when a task is put in "
    "again after all others."
)


def shared_rows(
    tier: Tier, label: str, seed: int, files: Mapping[str, Path], records: Mapping[str, Record]
) -> list[dict[str, Any]]:
    """Loads each task's file into one encoder, twice in turn, and evaluates.

    Args:
        tier: configuration.
        label: label of the method.
        seed: seed of the runs.
        files: files that the runs saved, by task.
        records: records of the runs, by task.

    Returns:
        one row per task: ``shared_score``, ``run_score``, ``stored_bytes``, ``dense_bytes`` (a
        full-size model), and ``changed_on_return``: the largest difference of a logit between the
        first and the second time that the task is loaded, after all other tasks. It is zero unless
        another task left something behind.
    """
    torch.set_num_threads(tier.threads)
    tokenizer = load_tokenizer(tier)
    encoders: dict[int, nn.Module] = {}
    sizes: dict[int, int] = {}
    logits: dict[str, list[torch.Tensor]] = {task: [] for task in files}
    data = {task: TaskData(tier, task, tokenizer) for task in files}
    for _ in range(2):
        for task, path in files.items():
            labels = task_named(task).num_labels
            if labels not in encoders:
                plain = load_classifier(tier, task, derive_seed(task, seed, "init"), "pretrained")
                sizes[labels] = sum(p.numel() * p.element_size() for p in plain.parameters())
                encoders[labels] = prepare(plain, tier.all_methods[label], seed)
            load_task(encoders[labels], path)
            logits[task].append(predict(encoders[labels], tokenizer, data[task].validation))
    rows = []
    for task, path in files.items():
        first, second = logits[task]
        predictions = predictions_from_logits(task, first.numpy())
        metric = GlueMetric(task)
        computed = metric.compute(predictions=predictions, references=data[task].labels)
        assert computed is not None
        found = score(task, {name: float(value) for name, value in computed.items()})
        rows.append(
            {
                "tier": tier.tier,
                "method": label,
                "title": records[task].config.title,
                "task": task,
                "seed": seed,
                "shared_score": round(found, SCORE_DECIMALS) + 0.0,
                "run_score": round(records[task].last.score, SCORE_DECIMALS) + 0.0,
                "stored_bytes": path.stat().st_size,
                "dense_bytes": sizes[task_named(task).num_labels],
                "changed_on_return": float((second - first).abs().max()),
            }
        )
    return rows


def shared_table(
    rows: Sequence[Mapping[str, Any]],
    records: Sequence[Record],
    methods: Sequence[str],
    tasks: Sequence[str],
) -> Table:
    """One row per method: scores on the shared encoder by task, and storage.

    Args:
        rows: rows of :func:`shared_rows` for all methods.
        records: records of the runs.
        methods: labels in the order of the rows.
        tasks: tasks in the order of the columns.
    """
    import pandas as pd

    summed = []
    for method in methods:
        own = {row["task"]: row for row in rows if row["method"] == method}
        stored = mean(row["stored_bytes"] for row in own.values())
        dense = sum(row["dense_bytes"] for row in own.values())
        encoder = max(row["dense_bytes"] for row in own.values())
        total = encoder + sum(row["stored_bytes"] for row in own.values())
        summed.append(
            {
                "title": next(iter(own.values()))["title"],
                **{task: own[task]["shared_score"] for task in tasks},
                "shared": mean(row["shared_score"] for row in own.values()),
                "runs": mean(row["run_score"] for row in own.values()),
                "stored_kib": stored / 1024,
                "of_the_model": 100 * stored / encoder,
                "all_tasks": 100 * total / dense,
                "left_behind": max(row["changed_on_return"] for row in own.values()),
            }
        )
    columns = (
        Column("Method", "title", text=True),
        *(Column(task_title(task), task, number) for task in tasks),
        Column("Average", "shared", number),
        Column("Runs", "runs", number),
        Column("Stored (KiB)", "stored_kib", number),
        Column("Of the model (%)", "of_the_model", decimals(2)),
        Column("All tasks (%)", "all_tasks", number),
        Column("Left behind", "left_behind", "{:.1g}".format),
    )
    return Table(
        name="shared-encoder",
        title=f"{len(tasks)} tasks on one frozen encoder (tier {records[0].tier})",
        caption=table_caption(_LEAD, records, methods, tasks),
        numbers=pd.DataFrame([dict(row) for row in rows]),
        columns=columns,
        rows=summed,
    )
