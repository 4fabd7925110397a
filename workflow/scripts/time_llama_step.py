"""Times training steps of the Llama experiments, and what they hold in memory."""

from finegates.job import running

job = snakemake
with running(job):
    from finegates.causal.timing import step_table, time_llama_steps
    from finegates.config import configured_tier
    from finegates.record import hardware
    from finegates.tables import write_table

    tier = configured_tier(job.config)
    frame = time_llama_steps(tier, job.threads)
    write_table(step_table(frame.round(4), tier, hardware(job.threads)), *job.output)
