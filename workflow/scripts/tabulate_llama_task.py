"""Tabulates a Llama as a classifier: scores, and parameters removed by every denominator."""

from finegates.job import running

job = snakemake
with running(job):
    from finegates.record import read_records
    from finegates.tables import write_table
    from finegates.tables.llama import llama_task_table
    from finegates.wording import reworded

    records = reworded(read_records(job.input.records), job.params.words)
    write_table(llama_task_table(records, job.params.methods, job.params.tasks), *job.output)
