"""Times whole training runs, interleaved, and writes ratios to LoRA's."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.files import write_text
    from finegates.suite.config.load import configured_tier
    from finegates.suite.runs.machine import hardware
    from finegates.suite.tables.training_runs import training_runs_text
    from finegates.suite.timing.control import load_average
    from finegates.suite.timing.training_runs import time_training_runs

    tier = configured_tier(job.config)
    before = load_average()
    frame = time_training_runs(tier, job.threads)
    machine = {**hardware(job.threads), "load": [before, load_average()]}
    write_text(job.output.csv, frame.to_csv(index=False, float_format="%.4f"))
    write_text(job.output.md, training_runs_text(frame, tier, machine))
