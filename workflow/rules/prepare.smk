# Data and encoder of the tier, where they are made here.


rule generate_language:
    output:
        tables=(DATA_FILES if TIER.data.generated else f"{RESULTS}/data/.not-generated"),
    log:
        f"{RESULTS}/logs/generate_language.log",
    benchmark:
        f"{RESULTS}/benchmarks/generate_language.tsv"
    priority: 3
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        settings=lambda wildcards: TIER.data.model_dump(),
        tasks=TIER.tasks,
        code=code_digest("workflow/scripts/generate_language.py"),
    script:
        "../scripts/generate_language.py"


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
        settings=lambda wildcards: TIER.model.model_dump(),
        code=code_digest("workflow/scripts/pretrain_encoder.py"),
    script:
        "../scripts/pretrain_encoder.py"


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
        settings=lambda wildcards: TIER.data.model_dump(),
        tasks=TIER.tasks,
        code=code_digest("workflow/scripts/score_bag_of_words.py"),
    script:
        "../scripts/score_bag_of_words.py"
