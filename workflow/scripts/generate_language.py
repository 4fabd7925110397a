"""Generates the smoke tier's eight tasks as Parquet tables."""

from pathlib import Path

from finegates.job import running

job = snakemake
with running(job):
    import pyarrow.parquet as pq

    from finegates.files import whole_file
    from finegates.tasks.glue import split_path
    from finegates.tasks.language import generate_task

    settings = job.params.settings["generated"]
    folder = Path(job.output.tables[0]).parent.parent
    for task in job.params.tasks:
        for split in ("train", "validation"):
            table = generate_task(task, split, settings[f"{split}_rows"], settings["seed"])
            path = split_path(folder, task, split)
            with whole_file(path) as aside:
                pq.write_table(table, aside)
            print(path, table.num_rows)
