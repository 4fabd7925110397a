# What a run is: its record's path, the tables it reads, the settings that bear on it.

PER_TASK = TIER.runs_per_process == "task"
RUN = f"{RESULTS}/runs/{{task}}/{{method}}/seed{{seed}}.json"


WEIGHTS = f"{RESULTS}/models/teachers/{{task}}/{{method}}/seed{{seed}}.safetensors"
TEACHERS = sorted({m.teacher for m in TIER.methods.values() if m.teacher})


def predecessors(wildcards):
    """What a run takes from other jobs: the record of the gated run that it matches, the weights of
    the dense run that it follows."""
    if PER_TASK:
        return []
    method = TIER.methods[wildcards.method]
    names = {"task": wildcards.task, "seed": wildcards.seed}
    files = [RUN.format(**names, method=method.matched)] if method.matched else []
    return files + ([WEIGHTS.format(**names, method=method.teacher)] if method.teacher else [])


def outputs_of_task(path, methods):
    """That output of all seeds of the methods, the task still a wildcard."""
    return expand(path, task="{task}", method=methods, seed=TIER.seeds)


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


def encoder_input():
    """The encoder as an input. One that is not made here counts by its digest in the record, not by
    its date: installing the package that holds it again must not retrain everything."""
    if MODEL_FOLDER is None:
        return []
    if TIER.model.pretraining:
        return rules.pretrain_encoder.output.encoder
    return ancient(f"{MODEL_FOLDER}/config.json")


ENCODER = encoder_input()
