"""Copies a tier's records, tables, figures and timings to results/published/<tier>."""

from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job, sealed=False):
    from finegates.suite.jobs.publication import publish
    from finegates.suite.runs.predictions import checked_predictions
    from finegates.suite.runs.record import read_record

    # <results>/runs/<task>/<method>/seed<n>.json
    source, target = Path(job.input.records[0]).parents[3], Path(job.output[0])
    for record in job.input.records:
        read_record(record)  # refuses to publish what does not fit the schema
    records = [*job.input.records, *job.input.studied, *job.input.llama, *job.input.trials]
    predicted = filter(None, map(checked_predictions, records))
    # The report: megabytes that are made again from the rest in seconds.
    files = [path for path in [*job.input, *predicted] if Path(path).name != "report.html"]
    publish(files, source, target)
