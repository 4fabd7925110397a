"""Chooses the learning rates of every contender on one task, from trials on held-out rows."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.suite.runs.chosen_rates import choose_rates, write_choices
    from finegates.suite.runs.record import read_records

    write_choices(choose_rates(read_records(job.input.records)), job.output[0])
