# Generates or fetches data and encoder of the tier.


# Generated tasks. MNLI's reported split has a name of its own.
MATCHED = "mnli"
ALIKE = "|".join(task for task in TASKS if task != MATCHED)


# One job per task, so that tables do not depend on the list of tasks.
rule generate_language:
    output:
        tables=expand(f"{RESULTS}/data/{{{{task}}}}/{{split}}.parquet", split=SPLITS),
    log:
        f"{RESULTS}/logs/generate_language/{{task}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/generate_language/{{task}}.tsv"
    wildcard_constraints:
        task=ALIKE if TIER.generated else "none",
    priority: 3
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        settings=language_settings(TIER),
        code=code_digest("workflow/scripts/generate_language.py"),
    script:
        "../scripts/generate_language.py"


use rule generate_language as generate_matched with:
    output:
        tables=[
            f"{RESULTS}/data/{{task}}/train.parquet",
            f"{RESULTS}/data/{{task}}/{TASKS[MATCHED].validation}.parquet",
        ],
    wildcard_constraints:
        task=MATCHED if TIER.generated else "none",


rule pretrain_encoder:
    output:
        encoder=multiext(
            f"{RESULTS}/models/encoder/",
            "model.safetensors",
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ),
        summary=f"{RESULTS}/models/pretraining.json",
    log:
        f"{RESULTS}/logs/pretrain_encoder.log",
    benchmark:
        f"{RESULTS}/benchmarks/pretrain_encoder.tsv"
    priority: 3  # every run waits for it, on one core
    conda:
        "../../environment.yml"
    threads: TIER.model.pretraining.threads if TIER.model.pretraining else 1
    resources:
        mem_mb=memory(2000),
        runtime=30,
        gpu=TIER.gpus,
    params:
        settings=encoder_settings(TIER),
        code=code_digest("workflow/scripts/pretrain_encoder.py"),
    script:
        "../scripts/pretrain_encoder.py"


# A complete checkpoint is not fetched again, even if the code has changed. If the rule ran again,
# Snakemake would skip jobs that have its outputs as ancient inputs, even unfinished ones.
MISSING = [key for key, source in TIER.fetched.items() if not is_fetched(RESULTS, source)]


rule fetch_checkpoint:
    output:
        files=expand(f"{RESULTS}/models/fetched/{{{{key}}}}/{{name}}", name=CHECKPOINT_FILES),
    log:
        f"{RESULTS}/logs/fetch_checkpoint/{{key}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fetch_checkpoint/{{key}}.tsv"
    wildcard_constraints:
        key="|".join(MISSING) or "none",
    priority: 3  # every run waits for it
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(4000),
        runtime=60,
    params:
        settings=lambda wildcards: fetch_settings(TIER, wildcards.key),
        code=code_digest("workflow/scripts/fetch_checkpoint.py"),
    script:
        "../scripts/fetch_checkpoint.py"


rule score_bag_of_words:
    input:
        tables=DATA_FILES,
    output:
        f"{RESULTS}/bag_of_words.json",
    log:
        f"{RESULTS}/logs/score_bag_of_words.log",
    benchmark:
        f"{RESULTS}/benchmarks/score_bag_of_words.tsv"
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(2000),
        runtime=30,
    params:
        settings=floor_settings(TIER),
        tasks=TIER.tasks,
        code=code_digest("workflow/scripts/score_bag_of_words.py"),
    script:
        "../scripts/score_bag_of_words.py"
