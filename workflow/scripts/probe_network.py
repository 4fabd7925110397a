"""Measures loss, gradient and curvature along gate and LoRA training of the encoder."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.files import write_text
    from finegates.suite.config.load import configured_tier
    from finegates.suite.tables import to_csv
    from theory.evidence import rounded
    from theory.finetuned import look_at

    tier = configured_tier(job.config)
    found = look_at(tier, job.params.task, tier.theory.network)
    write_text(job.output.points, to_csv(rounded(found.points)))
    write_text(job.output.closing, to_csv(rounded(found.closing)))
