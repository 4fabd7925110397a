# The three experiments on Llama: on a task, posttraining without a task, pretraining with gates.


wildcard_constraints:
    size=r"[A-Za-z0-9_.-]+",
    llama=r"[A-Za-z0-9_.-]+",
    run=r"[A-Za-z0-9_.-]+",


if LLAMA.text.generated:

    rule generate_text:
        output:
            text=[f"{L}/text/{split}.parquet" for split in SPLITS],
        log:
            f"{RESULTS}/logs/generate_text.log",
        benchmark:
            f"{RESULTS}/benchmarks/generate_text.tsv"
        conda:
            "../../environment.yml"
        resources:
            mem_mb=memory(1000),
            runtime=10,
        params:
            settings=text_settings(TIER),
            code=code_digest("workflow/scripts/generate_text.py"),
        script:
            "../scripts/generate_text.py"


# A separate rule, so that another vocabulary rebuilds the tokenizer and not the text.
if trained_tokenizer():

    rule train_tokenizer:
        input:
            text=llama_text(),
        output:
            tokenizer=trained_tokenizer(),
        log:
            f"{RESULTS}/logs/train_tokenizer.log",
        benchmark:
            f"{RESULTS}/benchmarks/train_tokenizer.tsv"
        conda:
            "../../environment.yml"
        resources:
            mem_mb=memory(1000),
            runtime=10,
        params:
            settings=tokenizer_settings(TIER),
            code=code_digest("workflow/scripts/train_tokenizer.py"),
        script:
            "../scripts/train_tokenizer.py"


if LLAMA.pretraining:

    rule pretrain_llama:
        input:
            text=llama_text(),
            tokenizer=trained_tokenizer(),
        output:
            record=f"{L}/runs/pretraining/{{size}}/{{run}}/seed{{seed}}.json",
            model=directory(f"{L}/models/{{size}}/trained/{{run}}/seed{{seed}}"),
        log:
            f"{RESULTS}/logs/pretrain_llama/{{size}}/{{run}}/seed{{seed}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/pretrain_llama/{{size}}/{{run}}/seed{{seed}}.tsv"
        wildcard_constraints:
            size="|".join(map(re.escape, LLAMA.pretraining.sizes)),
            run=labels_of(pretraining_runs(TIER)),
        conda:
            "../../environment.yml"
        threads: TIER.threads * LLAMA.pretraining.training.processes
        resources:
            mem_mb=memory(2500),
            runtime=240,
            gpu=TIER.gpus * LLAMA.pretraining.training.processes,
            nodes=LLAMA.pretraining.training.nodes,
        params:
            settings=pretraining_settings,
            code=code_digest("workflow/scripts/train_llama.py"),
        script:
            "../scripts/train_llama.py"

    # The other experiments may start from the dense model of the first seed.
    use rule pretrain_llama as pretrain_dense_llama with:
        output:
            record=f"{L}/runs/pretraining/{{size}}/dense/seed{TIER.seeds[0]}.json",
            model=directory(f"{L}/models/{{size}}/dense"),
        log:
            f"{RESULTS}/logs/pretrain_dense_llama/{{size}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/pretrain_dense_llama/{{size}}.tsv"
        params:
            settings=pretraining_settings,
            # The path of the model does not name its seed.
            seed=f"seed {TIER.seeds[0]}",
            code=code_digest("workflow/scripts/train_llama.py"),

    ruleorder: pretrain_dense_llama > pretrain_llama

    rule tabulate_llama_pretraining:
        input:
            records=in_order_of_rows(pretraining_runs(TIER)),
        output:
            report(
                multiext(f"{LLAMA_TABLES}/pretraining", ".csv", ".md", ".tex"),
                caption="../report/tabulate_llama.rst",
                category="Llama",
            ),
            curves=f"{LLAMA_TABLES}/pretraining_curves.csv",
        log:
            f"{RESULTS}/logs/tabulate_llama_pretraining.log",
        conda:
            "../../environment.yml"
        resources:
            mem_mb=memory(1000),
            runtime=10,
        params:
            words=text_words_of(TIER, pretraining_runs(TIER)),
            code=code_digest("workflow/scripts/tabulate_llama_pretraining.py"),
        script:
            "../scripts/tabulate_llama_pretraining.py"

    rule draw_llama_pretraining:
        input:
            curves=f"{LLAMA_TABLES}/pretraining_curves.csv",
            records=PRETRAINING,
        output:
            report(
                multiext(f"{LLAMA_FIGURES}/pretraining", ".svg", ".png", ".pdf"),
                caption="../report/draw_llama_pretraining.rst",
                category="Llama",
            ),
        log:
            f"{RESULTS}/logs/draw_llama_pretraining.log",
        conda:
            "../../environment.yml"
        resources:
            mem_mb=memory(1000),
            runtime=10,
        params:
            words=text_words_of(TIER, pretraining_runs(TIER)),
            code=code_digest("workflow/scripts/draw_llama_pretraining.py"),
        script:
            "../scripts/draw_llama_pretraining.py"


if LLAMA.posttraining:

    # Tiny runs of a model share a process. Long runs have a process each.
    rule posttrain_llama:
        input:
            text=llama_text(),
            model=posttraining_model,
        output:
            (
                of_any_model(posttraining_runs(TIER))
                if PER_TASK
                else f"{L}/runs/posttraining/{{llama}}/{{run}}/seed{{seed}}.json"
            ),
        log:
            (
                f"{RESULTS}/logs/posttrain_llama/{{llama}}.log"
                if PER_TASK
                else f"{RESULTS}/logs/posttrain_llama/{{llama}}/{{run}}/seed{{seed}}.log"
            ),
        benchmark:
            (
                f"{RESULTS}/benchmarks/posttrain_llama/{{llama}}.tsv"
                if PER_TASK
                else f"{RESULTS}/benchmarks/posttrain_llama/{{llama}}/{{run}}/seed{{seed}}.tsv"
            )
        wildcard_constraints:
            run=labels_of(posttraining_runs(TIER)),
        conda:
            "../../environment.yml"
        threads: TIER.threads * LLAMA.posttraining.training.processes
        resources:
            mem_mb=memory(2500),
            runtime=240,
            gpu=TIER.gpus * LLAMA.posttraining.training.processes,
            nodes=LLAMA.posttraining.training.nodes,
        params:
            settings=posttraining_settings,
            code=code_digest("workflow/scripts/train_llama.py"),
        script:
            "../scripts/train_llama.py"

    # The dense model and one-shot pruning only evaluate, all in one process.
    rule prune_llama:
        input:
            text=llama_text(),
            model=posttraining_model,
            matched=matched_records,
        output:
            of_any_model(pruning_runs(TIER)),
        log:
            f"{RESULTS}/logs/prune_llama/{{llama}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/prune_llama/{{llama}}.tsv"
        conda:
            "../../environment.yml"
        threads: TIER.threads
        resources:
            mem_mb=memory(2500),
            runtime=120,
            gpu=TIER.gpus,
        params:
            settings=lambda wildcards: pruning_settings(TIER, wildcards.llama),
            code=code_digest("workflow/scripts/prune_llama.py"),
        script:
            "../scripts/prune_llama.py"

    rule tabulate_llama_posttraining:
        input:
            records=in_order_of_rows([*posttraining_runs(TIER), *pruning_runs(TIER)]),
        output:
            report(
                multiext(f"{LLAMA_TABLES}/posttraining", ".csv", ".md", ".tex"),
                caption="../report/tabulate_llama.rst",
                category="Llama",
            ),
        log:
            f"{RESULTS}/logs/tabulate_llama_posttraining.log",
        conda:
            "../../environment.yml"
        resources:
            mem_mb=memory(1000),
            runtime=10,
        params:
            words=text_words_of(TIER, [*posttraining_runs(TIER), *pruning_runs(TIER)]),
            code=code_digest("workflow/scripts/tabulate_llama_posttraining.py"),
        script:
            "../scripts/tabulate_llama_posttraining.py"

    rule draw_llama_posttraining:
        input:
            csv=f"{LLAMA_TABLES}/posttraining.csv",
            records=[*POSTTRAINING, *PRUNING],
        output:
            report(
                multiext(f"{LLAMA_FIGURES}/posttraining", ".svg", ".png", ".pdf"),
                caption="../report/draw_llama_posttraining.rst",
                category="Llama",
            ),
        log:
            f"{RESULTS}/logs/draw_llama_posttraining.log",
        conda:
            "../../environment.yml"
        resources:
            mem_mb=memory(1000),
            runtime=10,
        params:
            words=text_words_of(TIER, [*posttraining_runs(TIER), *pruning_runs(TIER)]),
            code=code_digest("workflow/scripts/draw_llama_posttraining.py"),
        script:
            "../scripts/draw_llama_posttraining.py"


if LLAMA.on_task:

    rule finetune_llama:
        input:
            tables=lambda wildcards: [
                str(path)
                for path in data_files(ON_TASK)
                if Path(path).parent.name == wildcards.task
            ],
            model=on_task_model(),
            predecessors=llama_predecessors,
        output:
            records=(outputs_of_task(TASK_RUN, list(ON_TASK.methods)) if PER_TASK else TASK_RUN),
            predicted=(
                outputs_of_task(TASK_PREDICTED, list(ON_TASK.methods))
                if PER_TASK
                else TASK_PREDICTED
            ),
        log:
            (
                f"{RESULTS}/logs/finetune_llama/{{task}}.log"
                if PER_TASK
                else f"{RESULTS}/logs/finetune_llama/{{task}}/{{method}}/seed{{seed}}.log"
            ),
        benchmark:
            (
                f"{RESULTS}/benchmarks/finetune_llama/{{task}}.tsv"
                if PER_TASK
                else f"{RESULTS}/benchmarks/finetune_llama/{{task}}/{{method}}/seed{{seed}}.tsv"
            )
        conda:
            "../../environment.yml"
        threads: TIER.threads
        resources:
            mem_mb=memory(2500),
            runtime=240,
            gpu=TIER.gpus,
        params:
            on_llama=True,
            settings=settings_of_task_runs,
            code=code_digest("workflow/scripts/finetune.py"),
        script:
            "../scripts/finetune.py"

    rule tabulate_llama_task:
        input:
            records=TASK_RECORDS,
        output:
            report(
                multiext(f"{LLAMA_TABLES}/task", ".csv", ".md", ".tex"),
                caption="../report/tabulate_llama.rst",
                category="Llama",
            ),
        log:
            f"{RESULTS}/logs/tabulate_llama_task.log",
        conda:
            "../../environment.yml"
        resources:
            mem_mb=memory(1000),
            runtime=10,
        params:
            methods=list(ON_TASK.methods),
            tasks=ON_TASK.tasks,
            words=words_of(ON_TASK, ON_TASK.methods),
            code=code_digest("workflow/scripts/tabulate_llama_task.py"),
        script:
            "../scripts/tabulate_llama_task.py"

    rule draw_llama_task:
        input:
            records=TASK_RECORDS,
        output:
            report(
                multiext(f"{LLAMA_FIGURES}/task", ".svg", ".png", ".pdf"),
                caption="../report/draw_tradeoff.rst",
                category="Llama",
            ),
        log:
            f"{RESULTS}/logs/draw_llama_task.log",
        conda:
            "../../environment.yml"
        resources:
            mem_mb=memory(1000),
            runtime=10,
        params:
            methods=list(ON_TASK.methods),
            tasks=ON_TASK.tasks,
            words=words_of(ON_TASK, ON_TASK.methods),
            code=code_digest("workflow/scripts/draw_llama_task.py"),
        script:
            "../scripts/draw_llama_task.py"


rule time_llama_step:
    input:
        models=[
            *(on_task_model() if LLAMA.on_task else []),
            *(
                path
                for model in (LLAMA.posttraining.models.values() if LLAMA.posttraining else [])
                for path in dense_llama(model.dense)
            ),
            *trained_tokenizer(),
        ],
    output:
        multiext(f"{L}/timing/step", ".csv", ".md", ".tex"),
    log:
        f"{RESULTS}/logs/time_llama_step.log",
    conda:
        "../../environment.yml"
    # All cores, so that nothing else runs during the measurement.
    threads: workflow.cores
    resources:
        mem_mb=memory(4000),
        runtime=30,
    params:
        settings=llama_step_settings(TIER),
        code=code_digest("workflow/scripts/time_llama_step.py"),
    script:
        "../scripts/time_llama_step.py"


LLAMA_RESULTS = [
    *rules.time_llama_step.output,
    *(
        [
            *rules.tabulate_llama_pretraining.output,
            *rules.draw_llama_pretraining.output,
        ]
        if LLAMA.pretraining
        else []
    ),
    *(
        [*rules.tabulate_llama_posttraining.output, *rules.draw_llama_posttraining.output]
        if LLAMA.posttraining
        else []
    ),
    *([*rules.tabulate_llama_task.output, *rules.draw_llama_task.output] if LLAMA.on_task else []),
]


# Only these experiments: snakemake llama
rule llama:
    input:
        LLAMA_RESULTS,


rule publish_llama:
    input:
        LLAMA_RESULTS,
        records=LLAMA_RECORDS,
    output:
        touch(f"{L}/.published"),
    log:
        f"{RESULTS}/logs/publish_llama.log",
    conda:
        "../../environment.yml"
    resources:
        mem_mb=memory(1000),
        runtime=10,
    params:
        code=code_digest("workflow/scripts/publish_llama.py"),
    script:
        "../scripts/publish_llama.py"
