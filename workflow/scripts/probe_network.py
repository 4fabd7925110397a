"""Measures gradient and extreme Hessian eigenvalues along gate and LoRA training of the encoder."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.files import write_text
    from finegates.suite.config.load import configured_tier
    from finegates.suite.tables import to_csv
    from theory.evidence import rounded
    from theory.finetuned import landscape_frame

    tier = configured_tier(job.config)
    frame = landscape_frame(tier, job.params.task, tier.theory.network)
    write_text(job.output.csv, to_csv(rounded(frame)))
