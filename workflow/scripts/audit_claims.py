"""Judges every claim of the ledger by this tier's tables."""

from pathlib import Path

from finegates.job import job_log

job = snakemake
with job_log(job.log[0]):
    from finegates.claims import Evidence, audit, evidence_table, load_ledger, verdict_table
    from finegates.files import write_text

    results = audit(load_ledger(job.input.ledger), Evidence(Path(job.output.md).parent))
    verdicts = verdict_table(results, job.params.tier, job.params.about)
    evidence = evidence_table(results, job.params.tier)
    write_text(job.output.verdicts, verdicts.csv())
    write_text(job.output.evidence, evidence.csv())
    write_text(job.output.md, f"{verdicts.markdown()}\n{evidence.markdown()}")
    for result in results:
        print(f"{result.claim.id}: {result.verdict}")
