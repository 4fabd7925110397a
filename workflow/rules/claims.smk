# The audit of the paper's claims, from this tier's tables.


rule audit_claims:
    input:
        rules.tabulate_glue.output,
        TIMINGS,
        ledger=workflow.source_path("../../config/claims.yaml"),
    output:
        verdicts=f"{RESULTS}/claims.csv",
        evidence=f"{RESULTS}/claims_evidence.csv",
        md=report(
            f"{RESULTS}/claims.md",
            caption="../report/audit_claims.rst",
            category="Claims",
        ),
    log:
        f"{RESULTS}/logs/audit_claims.log",
    benchmark:
        f"{RESULTS}/benchmarks/audit_claims.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=1000,
        runtime=10,
    params:
        tier=TIER.tier,
        about=f"{TIER.description}.",
        code=code_digest("workflow/scripts/audit_claims.py"),
    script:
        "../scripts/audit_claims.py"
