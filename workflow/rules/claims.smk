# The audit of the paper's claims from this tier's tables, and the report on one page.

LEDGER = workflow.source_path("../../config/claims.yaml")


rule audit_claims:
    input:
        rules.tabulate_glue.output,
        THEORY_RESULTS if TIER.theory else [],
        TIMINGS,
        LLAMA_RESULTS if TIER.llama else [],
        STUDY_RESULTS if TIER.studies else [],
        ledger=LEDGER,
        predicted=expected_predictions([*RECORDS, *STUDY_RECORDS]),
    output:
        report(
            multiext(f"{RESULTS}/claims", ".csv", ".md", ".tex"),
            caption="../report/audit_claims.rst",
            category="Claims",
        ),
        evidence=multiext(f"{RESULTS}/claims_evidence", ".csv", ".md", ".tex"),
    log:
        f"{RESULTS}/logs/audit_claims.log",
    benchmark:
        f"{RESULTS}/benchmarks/audit_claims.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        tier=TIER.tier,
        about=f"{TIER.description}.",
        synthetic=TIER.data.generated is not None,
        code=code_digest("workflow/scripts/audit_claims.py"),
    script:
        "../scripts/audit_claims.py"


rule write_report:
    input:
        rules.audit_claims.output,
        rules.tabulate_cost.output,
        rules.draw_tradeoff.output,
        rules.draw_gates.output,
        THEORY_RESULTS if TIER.theory else [],
        records=RECORDS,
        studied=STUDY_RECORDS,
        ledger=LEDGER,
        templates=[
            workflow.source_path(f"../../finegates/suite/report/templates/page.{suffix}")
            for suffix in ("html.j2", "css", "js")
        ],
    output:
        f"{RESULTS}/report.html",
    log:
        f"{RESULTS}/logs/write_report.log",
    benchmark:
        f"{RESULTS}/benchmarks/write_report.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        words=words_of(TIER, TIER.all_methods),
        code=code_digest("workflow/scripts/write_report.py"),
    script:
        "../scripts/write_report.py"
