"""Tabulates the properties of LoRA, masks and gates as measurements."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    import pandas as pd

    from finegates.suite.runs.record import read_records
    from finegates.suite.tables import write_table
    from finegates.suite.tables.properties import properties_table
    from finegates.suite.tables.study import read_times
    from finegates.suite.tables.wording import reworded

    records = reworded(read_records(job.input.records), job.params.words)
    times = read_times(pd.read_csv(job.input.times))
    table = properties_table(job.params.methods, records, job.params.tasks, times)
    write_table(table, *job.output)
