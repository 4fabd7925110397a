"""Tabulates the learning rates that were tried, and those that were chosen."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.suite.runs.chosen_rates import choose_rates
    from finegates.suite.runs.record import read_records
    from finegates.suite.tables import write_table
    from finegates.suite.tables.rates import rates_table

    trials = choose_rates(read_records(job.input.records))
    table = rates_table(trials, job.params.titles, job.params.tier, job.params.shared)
    write_table(table, *job.output)
