"""Judges every claim of the ledger by this tier's tables."""

from pathlib import Path

from finegates.suite.jobs.job import running

job = snakemake
with running(job):
    from finegates.suite.claims import Evidence, audit, evidence_table, load_ledger, verdict_table
    from finegates.suite.tables import write_table

    results = audit(load_ledger(job.input.ledger), Evidence(Path(job.output[0]).parent))
    of = (job.params.tier, job.params.about, job.params.synthetic)
    write_table(verdict_table(results, *of), *job.output[:3])
    write_table(evidence_table(results, job.params.tier), *job.output.evidence)
    for result in results:
        print(f"{result.claim.id}: {result.verdict}")
