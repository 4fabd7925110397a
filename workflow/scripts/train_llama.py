"""Trains the Llama runs of one job on plain text, and writes a record each."""

from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.suite.runs.launch import launch

    records = [path for path in job.output if Path(path).suffix == ".json"]
    for number, path in enumerate(records, start=1):
        print(f"[{number}/{len(records)}] {path}", flush=True)
        launch(job.config, path, job.params.code)
