# Fine-tuning: one record a run. Tiny runs share a process by task, because the start of a process
# costs as much as such a run; long ones have a process each and are resumed run by run.


rule finetune:
    input:
        tables=task_tables,
        encoder=ENCODER,
        predecessors=predecessors,
    output:
        records=outputs_of_task(RUN, METHODS) if PER_TASK else RUN,
        weights=outputs_of_task(WEIGHTS, TEACHERS) if PER_TASK else [],
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
        mem_mb=memory(2500),
        runtime=240,
        gpu=TIER.gpus,
    params:
        settings=run_settings,
        code=code_digest("workflow/scripts/finetune.py"),
    script:
        "../scripts/finetune.py"


# A run that others are distilled from keeps its weights, too.
if TEACHERS and not PER_TASK:

    use rule finetune as finetune_teacher with:
        output:
            records=RUN,
            weights=WEIGHTS,
        wildcard_constraints:
            method="|".join(TEACHERS),

    ruleorder: finetune_teacher > finetune
