"""Tabulates what each method costs next to what it scores."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.suite.runs.record import read_records
    from finegates.suite.tables import write_table
    from finegates.suite.tables.method_cost import method_cost_table
    from finegates.suite.tables.wording import reworded

    records = reworded(read_records(job.input.records), job.params.words)
    methods, tasks, seeds = (job.params.study[key] for key in ("methods", "tasks", "seeds"))
    table = method_cost_table(records, methods, tasks, job.params.starts, seeds=seeds)
    write_table(table, *job.output)
