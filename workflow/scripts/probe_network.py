"""Measures gradient and extreme Hessian eigenvalues along gate and LoRA training of the encoder."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.files import write_text
    from finegates.suite.config.load import configured_tier
    from finegates.suite.tables import to_csv
    from theory.evidence import rounded
    from theory.finetuned import Look, landscape_frame

    tier = configured_tier(job.config)
    look = Look(**{**tier.theory.network.model_dump(), "task": job.params.task})
    write_text(job.output.csv, to_csv(rounded(landscape_frame(tier, look))))
