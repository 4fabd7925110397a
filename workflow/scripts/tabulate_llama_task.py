"""Tabulates a Llama as a classifier: scores, and parameters removed by every denominator."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.suite.runs.record import read_records
    from finegates.suite.tables import write_table
    from finegates.suite.tables.llama_task import llama_task_table
    from finegates.suite.tables.wording import reworded

    records = reworded(read_records(job.input.records), job.params.words)
    write_table(llama_task_table(records, job.params.methods, job.params.tasks), *job.output)
