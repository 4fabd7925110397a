"""Prunes models to a wanted time and measures the time that they take."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.files import write_text
    from finegates.suite.config.load import configured_tier
    from finegates.suite.runs.machine import hardware
    from finegates.suite.tables.time_budgets import time_budgets_text
    from finegates.suite.timing.control import load_average
    from finegates.suite.timing.time_budgets import time_budgets

    tier = configured_tier(job.config)
    before = load_average()
    frame = time_budgets(tier, job.threads)
    machine = {**hardware(job.threads), "load": [before, load_average()]}
    write_text(job.output.csv, frame.to_csv(index=False, float_format="%.4f"))
    write_text(job.output.md, time_budgets_text(frame, tier, machine))
