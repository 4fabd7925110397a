# Fine-tuning, one record per run. Tiny runs of a task share a process, because starting one takes as
# long as such a run. Long runs have a process each, so that they are resumed one by one.


rule finetune:
    input:
        tables=task_tables,
        encoder=ENCODER,
        predecessors=predecessors,
        rates=chosen_rates,
    output:
        records=outputs_of_task(RUN, METHODS) if PER_TASK else RUN,
        predicted=outputs_of_task(PREDICTED, METHODS) if PER_TASK else PREDICTED,
        trained=(outputs_of_task(TRAINED, [m for m in METHODS if m in KEPT]) if PER_TASK else []),
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
        settings=settings_of_runs,
        code=code_digest("workflow/scripts/finetune.py"),
    script:
        "../scripts/finetune.py"


# Runs whose trained weights other jobs need.
if KEPT and not PER_TASK:

    use rule finetune as finetune_kept with:
        output:
            records=RUN,
            predicted=PREDICTED,
            trained=TRAINED,
        wildcard_constraints:
            method="|".join(map(re.escape, KEPT)),

    ruleorder: finetune_kept > finetune


# The studies' runs that are not in the tier's main table, by task and seed.
if TIER.studies and PER_TASK:
    STUDIED = [m for m in TIER.study_methods if m not in METHODS]
    STUDIED_AGAIN = [m for m in TIER.study_methods if m in METHODS]
    FURTHER_SEEDS = [seed for seed in TIER.studies.seeds if seed not in TIER.seeds]

    # By far the longest jobs of the tier, so they start early: the last one would otherwise run
    # alone. They wait for those of the main table on the same tasks, which come first.
    use rule finetune as finetune_first with:
        wildcard_constraints:
            task="|".join(TIER.studies.tasks),
        priority: 2

    ruleorder: finetune_first > finetune

    use rule finetune as finetune_studied with:
        input:
            tables=task_tables,
            encoder=ENCODER,
            predecessors=lambda wildcards: needed(STUDIED, wildcards.task, wildcards.seed),
        output:
            records=expand(RUN, method=STUDIED, allow_missing=True),
            predicted=expand(PREDICTED, method=STUDIED, allow_missing=True),
            trained=expand(TRAINED, method=[m for m in STUDIED if m in KEPT], allow_missing=True),
        log:
            f"{RESULTS}/logs/finetune/studied/{{task}}_seed{{seed}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/finetune/studied/{{task}}_seed{{seed}}.tsv"
        wildcard_constraints:
            task="|".join(TIER.studies.tasks),
            seed="|".join(map(str, TIER.studies.seeds)),
        priority: 1
        params:
            settings=settings_of(STUDIED),
            code=code_digest("workflow/scripts/finetune.py"),

    if FURTHER_SEEDS:

        use rule finetune as finetune_again with:
            output:
                records=expand(RUN, method=STUDIED_AGAIN, allow_missing=True),
                predicted=expand(PREDICTED, method=STUDIED_AGAIN, allow_missing=True),
                trained=expand(
                    TRAINED, method=[m for m in STUDIED_AGAIN if m in KEPT], allow_missing=True
                ),
            log:
                f"{RESULTS}/logs/finetune/again/{{task}}_seed{{seed}}.log",
            benchmark:
                f"{RESULTS}/benchmarks/finetune/again/{{task}}_seed{{seed}}.tsv"
            wildcard_constraints:
                task="|".join(TIER.studies.tasks),
                seed="|".join(map(str, FURTHER_SEEDS)),
            priority: 2
            params:
                settings=settings_of(STUDIED_AGAIN),
                code=code_digest("workflow/scripts/finetune.py"),


# The search for learning rates, scored on held-out training rows.
if SEARCH:

    use rule finetune as try_rate with:
        input:
            tables=task_tables,
            encoder=ENCODER,
            predecessors=start_of_trial,
        output:
            records=TRIAL,
            predicted=TRIAL_PREDICTED,
            trained=[],
        log:
            f"{RESULTS}/logs/try_rate/{{task}}/{{method}}/seed{{seed}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/try_rate/{{task}}/{{method}}/seed{{seed}}.tsv"
        priority: 1
        params:
            settings=lambda wildcards: run_settings(SEARCH, wildcards.task, [wildcards.method]),
            is_trial=True,
            code=code_digest("workflow/scripts/finetune.py"),

    use rule try_rate as try_rate_kept with:
        output:
            records=TRIAL,
            predicted=TRIAL_PREDICTED,
            trained=TRIAL_TRAINED,
        wildcard_constraints:
            method="|".join(map(re.escape, SEARCH.kept)) or "none",
        priority: 2  # other runs start from it

    ruleorder: try_rate_kept > try_rate

    rule choose_rates:
        input:
            records=TRIALS_OF_TASK,
        output:
            CHOSEN_RATES,
        log:
            f"{RESULTS}/logs/choose_rates/{{task}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/choose_rates/{{task}}.tsv"
        conda:
            "../../environment.yml"
        resources:
            mem_mb=memory(1000),
            runtime=10,
        params:
            code=code_digest("workflow/scripts/choose_rates.py"),
        script:
            "../scripts/choose_rates.py"
