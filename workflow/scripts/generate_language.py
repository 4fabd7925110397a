"""Generates the tables of one task in the generated language."""

from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    import pyarrow.parquet as pq

    from finegates.files import whole_file
    from finegates.suite.data.language import generate_task

    settings = job.params.settings
    for split, path in zip(("train", "validation"), map(Path, job.output.tables), strict=True):
        rows = settings[f"{split}_rows"]
        table = generate_task(job.wildcards.task, split, rows, settings["seed"])
        with whole_file(path) as aside:
            pq.write_table(table, aside)
        print(path, table.num_rows)
