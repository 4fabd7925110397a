"""Tabulates posttraining without a task beside one-shot pruning."""

from finegates.job import running

job = snakemake
with running(job):
    from finegates.causal.record import read_causal_records
    from finegates.tables import write_table
    from finegates.tables.llama import posttraining_table
    from finegates.wording import text_reworded

    records = text_reworded(read_causal_records(job.input.records), job.params.words)
    write_table(posttraining_table(records), *job.output)
