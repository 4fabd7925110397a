"""Tabulates posttraining without a task against one-shot pruning."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.suite.runs.llama_record import read_causal_records
    from finegates.suite.tables import write_table
    from finegates.suite.tables.llama_posttraining import posttraining_table
    from finegates.suite.tables.wording import text_reworded

    records = text_reworded(read_causal_records(job.input.records), job.params.words)
    write_table(posttraining_table(records), *job.output)
