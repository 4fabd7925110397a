"""Tabulates a study: what its methods scored, kept and, where measured, took."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    import pandas as pd

    from finegates.files import write_text
    from finegates.suite.config.studies import Study
    from finegates.suite.runs.record import read_records
    from finegates.suite.tables import runs_table, to_csv, write_table
    from finegates.suite.tables.study import read_times, study_table
    from finegates.suite.tables.wording import reworded

    study = Study.model_validate(job.params.study)
    records = reworded(read_records(job.input.records), job.params.words)
    measured = job.input.get("times")
    times = read_times(pd.read_csv(measured)) if measured else None
    tasks, seeds = job.params.tasks, job.params.seeds
    table = study_table(job.wildcards.study, study, records, tasks, seeds, times)
    write_table(table, *job.output.table)
    if job.output.get("runs"):
        write_text(job.output.runs, to_csv(runs_table(records, study.methods, tasks)))
