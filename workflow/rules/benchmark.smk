# Measured times: these files differ from run to run, tables of results do not.


rule time_step:
    input:
        encoder=ENCODER,
    output:
        csv=f"{RESULTS}/timing/step.csv",
        md=f"{RESULTS}/timing/step.md",
    log:
        f"{RESULTS}/logs/time_step.log",
    conda:
        "../../environment.yml"
    # All cores, so that nothing else runs beside the measurement.
    threads: workflow.cores
    resources:
        mem_mb=2500,
        runtime=30,
    params:
        settings=lambda wildcards: TIER.step_benchmark.model_dump(),
        code=code_digest("workflow/scripts/time_step.py"),
    script:
        "../scripts/time_step.py"


rule tabulate_cost:
    input:
        records=RECORDS,
        tables=rules.tabulate_glue.output,
        figures=[*rules.draw_tradeoff.output, *rules.draw_gates.output],
        step=rules.time_step.output,
    output:
        csv=f"{RESULTS}/timing/cost.csv",
        md=f"{RESULTS}/timing/cost.md",
    log:
        f"{RESULTS}/logs/tabulate_cost.log",
    conda:
        "../../environment.yml"
    params:
        benchmarks=f"{RESULTS}/benchmarks",
        pretraining=f"{RESULTS}/models/pretraining.json",
        code=code_digest("workflow/scripts/tabulate_cost.py"),
    script:
        "../scripts/tabulate_cost.py"
