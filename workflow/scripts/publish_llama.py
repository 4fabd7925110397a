"""Copies the Llama experiments of a tier to results/published/<tier>/llama."""

from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job, sealed=False):
    from finegates.suite.config.load import configured_tier
    from finegates.suite.jobs.publication import publish
    from finegates.suite.runs.llama_record import read_causal_record
    from finegates.suite.runs.predictions import checked_predictions
    from finegates.suite.runs.record import read_record

    tier = configured_tier(job.config)
    source, target = Path(tier.results) / "llama", Path("results/published") / tier.tier / "llama"
    for record in map(Path, job.input.records):
        # Refuses to publish what does not fit the schema.
        (read_record if "task" in record.relative_to(source).parts else read_causal_record)(record)
    predicted = filter(None, map(checked_predictions, job.input.records))
    publish([*job.input, *predicted], source, target)
