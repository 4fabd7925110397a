"""Writes the report of this tier: one self-contained page."""

from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.files import write_text
    from finegates.suite.claims import Evidence, audit, load_ledger
    from finegates.suite.report import build_report
    from finegates.suite.runs.record import read_records
    from finegates.suite.tables.wording import reworded

    folder = Path(job.output[0]).parent
    results = audit(load_ledger(job.input.ledger), Evidence(folder))
    records, studied = (
        reworded(read_records(paths), job.params.words)
        for paths in (job.input.records, job.input.studied)
    )
    page = build_report(folder, records, results, studied)
    write_text(job.output[0], page)
