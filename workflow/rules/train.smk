# Fine-tuning: one record a run. Tiny runs share a process by task, because the start of a process
# costs as much as such a run; long ones have a process each and are resumed run by run.


rule finetune:
    input:
        tables=task_tables,
        encoder=ENCODER,
        matched=matched_record,
    output:
        (
            expand(
                f"{RESULTS}/runs/{{{{task}}}}/{{method}}/seed{{seed}}.json",
                method=METHODS,
                seed=TIER.seeds,
            )
            if PER_TASK
            else RUN
        ),
    log:
        (
            f"{RESULTS}/logs/finetune/{{task}}.log"
            if PER_TASK
            else f"{RESULTS}/logs/finetune/{{task}}/{{method}}/seed{{seed}}.log"
        ),
    benchmark:
        (
            f"{RESULTS}/benchmarks/finetune/{{task}}.tsv"
            if PER_TASK
            else f"{RESULTS}/benchmarks/finetune/{{task}}/{{method}}/seed{{seed}}.tsv"
        )
    conda:
        "../../environment.yml"
    threads: TIER.threads
    resources:
        mem_mb=2500,
        runtime=240,
    params:
        settings=run_settings,
        code=code_digest("workflow/scripts/finetune.py"),
    script:
        "../scripts/finetune.py"
