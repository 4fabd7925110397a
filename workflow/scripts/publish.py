"""Copies a tier's records, tables, figures and timings to results/published/<tier>."""

import shutil
from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job, sealed=False):
    from finegates.suite.runs.predictions import checked_predictions
    from finegates.suite.runs.record import read_record

    # <results>/runs/<task>/<method>/seed<n>.json
    source, target = Path(job.input.records[0]).parents[3], Path(job.output[0])
    for record in job.input.records:
        read_record(record)  # refuses to publish what does not fit the schema
    records = [*job.input.records, *job.input.studied, *job.input.llama]
    predicted = filter(None, map(checked_predictions, records))
    files = dict.fromkeys(map(Path, [*job.input, *predicted]))
    aside = target.with_name(f".{target.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    for path in files:
        if path.name == "report.html":
            continue  # megabytes that are made again from the rest in seconds
        copy = aside / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    print(f"published {len(files)} files to {target}")
