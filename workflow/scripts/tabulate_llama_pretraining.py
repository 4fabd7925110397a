"""Tabulates pretraining with gates and dense pretraining, with their curves."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.files import write_text
    from finegates.suite.runs.llama_record import read_causal_records
    from finegates.suite.tables import to_csv, write_table
    from finegates.suite.tables.llama_pretraining import curve_table, pretraining_table
    from finegates.suite.tables.wording import text_reworded

    records = text_reworded(read_causal_records(job.input.records), job.params.words)
    write_table(pretraining_table(records), *job.output[:3])
    write_text(job.output.curves, to_csv(curve_table(records)))
