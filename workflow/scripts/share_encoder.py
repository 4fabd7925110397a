"""Puts the gates of all tasks into one frozen encoder, one after the other, and evaluates it."""

from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.suite.config.load import configured_tier
    from finegates.suite.runs.record import read_records
    from finegates.suite.tables import write_table
    from finegates.suite.tables.shared_encoder import shared_rows, shared_table
    from finegates.suite.tables.wording import reworded

    tier = configured_tier(job.config)
    records = reworded(read_records(job.input.records), job.params.words)
    # <task>/<method>/seed<n>.safetensors
    files = {(p.parent.name, p.parent.parent.name): p for p in map(Path, job.input.trained)}
    rows = []
    for label in job.params.methods:
        own = {record.task: record for record in records if record.method == label}
        kept = {task: files[label, task] for task in job.params.tasks}
        rows += shared_rows(tier, label, job.params.seed, kept, own)
        print(f"{label}: {len(kept)} tasks", flush=True)
    table = shared_table(rows, records, job.params.methods, job.params.tasks)
    write_table(table, *job.output)
