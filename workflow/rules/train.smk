# Fine-tuning: one record a run. Tiny runs share a process by task, because the start of a process
# costs as much as such a run; long ones have a process each and are resumed run by run.

PER_TASK = TIER.runs_per_process == "task"
RUN = f"{RESULTS}/runs/{{task}}/{{method}}/seed{{seed}}.json"


def matched_record(wildcards):
    """The record whose closed rows and columns a magnitude run matches, where it is another job's."""
    if PER_TASK:
        return []
    magnitude = TIER.methods[wildcards.method].magnitude
    if magnitude is None:
        return []
    return RUN.format(task=wildcards.task, method=magnitude.match, seed=wildcards.seed)


def task_tables(wildcards):
    return [path for path in DATA_FILES if Path(path).parent.name == wildcards.task]


def run_settings(wildcards):
    """What of the configuration bears on a job's runs; a change reruns just these."""
    labels = METHODS if PER_TASK else [wildcards.method]
    return {
        "model": TIER.model.model_dump(),
        "data": TIER.data.model_dump(),
        "training": TIER.training.model_dump(),
        "methods": {label: TIER.methods[label].model_dump() for label in labels},
        "threads": TIER.threads,
    }


rule finetune:
    input:
        tables=task_tables,
        encoder=f"{MODEL_FOLDER}/config.json" if MODEL_FOLDER else [],
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
    params:
        tier_file=TIER_FILE,
        settings=run_settings,
        code=code_digest("workflow/scripts/finetune.py"),
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
    threads: TIER.threads
    resources:
        mem_mb=2500,
        runtime=240,
    script:
        "../scripts/finetune.py"
