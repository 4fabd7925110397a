"""Evaluates a dense Llama and its one-shot pruned versions, and writes a record each."""

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.suite.config.llama_runs import run_named
    from finegates.suite.config.load import configured_tier
    from finegates.suite.runs.llama_record import read_causal_record
    from finegates.suite.runs.prune_llama import prune_runs
    from finegates.suite.runs.record import write_record

    tier = configured_tier(job.config)
    runs = [run_named(tier, path) for path in job.output]
    matched = [
        read_causal_record(run.matched().record(tier.results)) if run.criterion else None
        for run in runs
    ]
    pairs = list(zip(runs, matched, strict=True))
    for record, path in zip(
        prune_runs(tier, pairs, code_digest=job.params.code), job.output, strict=True
    ):
        write_record(record, path)
