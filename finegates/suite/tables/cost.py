"""Cost of a workflow run: jobs, wall time, and start-up time of processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from finegates.suite.runs.record import Record


def cost_table(
    records: Sequence[Record], benchmarks: str | Path, pretraining: str | Path | None
) -> pd.DataFrame:
    """Jobs, wall seconds and start-up seconds by rule, and their total.

    Start-up is the time from the start of a process until its imports are done. It is measured for
    fine-tuning and pretraining. A job of another rule, which imports at most as much, counts with
    the mean start-up of a fine-tuning process, or with its whole time if that is shorter.

    Args:
        records: records of all runs.
        benchmarks: folder of Snakemake's benchmark files, one per job. If they hold less
            fine-tuning time than the records, the records are used instead, one job each.
        pretraining: the summary of the pretraining job, if there was one.

    Returns:
        columns ``rule``, ``jobs``, ``wall_s``, ``startup_s``, ``peak_memory_mib``; the last row is
        ``total``.
    """
    folder = Path(benchmarks)
    rows: dict[str, dict[str, float]] = {}
    for path in sorted(folder.rglob("*.tsv")):
        rule = path.relative_to(folder).parts[0].removesuffix(".tsv")
        measured = pd.read_csv(path, sep="\t")
        row = rows.setdefault(rule, {"jobs": 0, "wall_s": 0.0, "peak_memory_mib": 0.0})
        row["jobs"] += 1
        row["wall_s"] += float(measured["s"].sum())
        # Snakemake does not measure the memory of very short jobs.
        memory = pd.to_numeric(measured["max_rss"], errors="coerce").max()
        row["peak_memory_mib"] = max(row["peak_memory_mib"], 0.0 if pd.isna(memory) else memory)
    recorded = {
        "jobs": len(records),
        "wall_s": sum(record.timing["wall_s"] for record in records),
        "peak_memory_mib": max(record.timing.get("peak_memory_mib", 0.0) for record in records),
    }
    # Restored runs, and runs of other machines, left no benchmark files here: use their records.
    if rows.get("finetune", {"wall_s": 0.0})["wall_s"] < recorded["wall_s"]:
        rows["finetune"] = recorded
    measured_s = sum(record.timing["startup_s"] for record in records)
    each = measured_s / rows["finetune"]["jobs"]
    startup = {rule: min(row["wall_s"], each * row["jobs"]) for rule, row in rows.items()}
    startup["finetune"] = measured_s
    if pretraining is not None:
        summary = json.loads(Path(pretraining).read_text(encoding="utf-8"))
        startup["pretrain_encoder"] = summary["startup_s"]
    table = pd.DataFrame(
        [{"rule": rule, **row, "startup_s": startup[rule]} for rule, row in rows.items()]
    )
    total = {
        "rule": "total",
        "jobs": table["jobs"].sum(),
        "wall_s": table["wall_s"].sum(),
        "startup_s": table["startup_s"].sum(),
        "peak_memory_mib": table["peak_memory_mib"].max(),
    }
    table = pd.concat([table, pd.DataFrame([total])], ignore_index=True)
    table["jobs"] = table["jobs"].astype(int)
    return table[["rule", "jobs", "wall_s", "startup_s", "peak_memory_mib"]]
