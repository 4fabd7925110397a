"""Tabulates the properties of LoRA, masks and gates as measurements."""

from finegates.job import running

job = snakemake
with running(job):
    import pandas as pd

    from finegates.record import read_records
    from finegates.studies.properties import properties_table
    from finegates.studies.table import read_times
    from finegates.tables import write_table
    from finegates.wording import reworded

    records = reworded(read_records(job.input.records), job.params.words)
    times = read_times(pd.read_csv(job.input.times))
    table = properties_table(job.params.methods, records, job.params.tasks, times)
    write_table(table, *job.output)
