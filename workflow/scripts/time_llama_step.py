"""Times training steps of the Llama experiments, and what they hold in memory."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.suite.config.load import configured_tier
    from finegates.suite.runs.machine import hardware
    from finegates.suite.tables import write_table
    from finegates.suite.tables.llama_step import step_table
    from finegates.suite.timing.llama_step import time_llama_steps

    tier = configured_tier(job.config)
    frame = time_llama_steps(tier, job.threads)
    write_table(step_table(frame.round(4), tier, hardware(job.threads)), *job.output)
