"""Tabulates a study: what its methods scored, kept and, where measured, took."""

from finegates.job import running

job = snakemake
with running(job):
    import pandas as pd

    from finegates.files import write_text
    from finegates.record import read_records
    from finegates.studies.schema import Study
    from finegates.studies.table import read_times, study_table
    from finegates.tables import runs_table, to_csv, write_table
    from finegates.wording import reworded

    study = Study.model_validate(job.params.study)
    records = reworded(read_records(job.input.records), job.params.words)
    measured = job.input.get("times")
    times = read_times(pd.read_csv(measured)) if measured else None
    tasks, seeds = job.params.tasks, job.params.seeds
    table = study_table(job.wildcards.study, study, records, tasks, seeds, times)
    write_table(table, *job.output.table)
    if job.output.get("runs"):
        write_text(job.output.runs, to_csv(runs_table(records, study.methods, tasks)))
