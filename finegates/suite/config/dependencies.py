"""Settings that a job's outputs depend on: a rule's ``settings``.

Snakemake reruns a job when a parameter of its rule changes. Each function returns only the settings
that determine the outputs of one job. It leaves out settings of other tasks, methods and models,
and

* words for captions (titles, names, descriptions), which tables take from the current configuration
  (``finegates.suite.tables.wording``);
* settings of the machine, such as micro-batch size, number of devices and checkpoint interval. They
  change results by rounding at most, see ``OF_THE_MACHINE``.

Mappings are sorted by key, so that the order in a file matters only if an output depends on it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from finegates.suite.config.llama_runs import Run, gates_of, study, training_of
from finegates.suite.config.llama_task import task_tier
from finegates.suite.config.methods import first_of_each_kind
from finegates.suite.config.tier import Tier

if TYPE_CHECKING:
    from finegates.suite.config.llama import CausalTraining
    from finegates.suite.config.section import Section

Settings = dict[str, Any]

WORDS = {"title", "name"}
"""Keys of sections whose values are printed in captions only."""

OF_THE_MACHINE = {
    "processes",
    "nodes",
    "micro_batch_size",
    "gradient_checkpointing",
    "eval_batch_size",
    "save_every",
}
"""Settings of training on plain text that say how a machine computes a run, not what the run is.

A step's noise is drawn by its number, so that a batch may be cut in any way, over processes or one
after the other. Held-out text is packed without padding, and its loss is a sum over tokens. What
remains is the order of sums, that is rounding.
"""


def language_settings(tier: Tier) -> Settings:
    """Settings of the generated tables of one task, whose name seeds the rows."""
    return _plain(tier.generated)


def encoder_settings(tier: Tier) -> Settings:
    """Settings of the encoder that the workflow pretrains."""
    return _plain(tier.model.pretraining)


def fetch_settings(tier: Tier, key: str) -> Settings:
    """Settings of the fetched checkpoint with this key."""
    return _plain(tier.fetched[key])


def floor_settings(tier: Tier) -> Settings:
    """Settings of a bag-of-words score, except tables and list of tasks."""
    return _plain(tier.data, without=WORDS)


def run_settings(tier: Tier, task: str, labels: Iterable[str]) -> Settings:
    """Settings of the records of the methods ``labels`` on one task.

    The evaluation batch size is left out. Evaluation does not draw random numbers or change
    weights, rows of a batch are independent, and padding is masked. Another size therefore changes
    logits by rounding only, and leaves the training bitwise equal.
    """
    training = tier.training
    return {
        "data": _plain(tier.data, without=WORDS),
        "methods": {
            label: {
                **_plain(tier.all_methods[label], without={*WORDS, "rates_of"}),
                "schedule": tier.all_methods[label].schedule or training.schedule,
                "precision": tier.all_methods[label].precision or training.precision,
            }
            for label in sorted(labels)
        },
        "model": _plain(tier.model, without=WORDS),
        "threads": tier.threads,
        "training": {
            "batch_size": training.batch_size,
            "epochs": training.epochs_of(task),
            "group_by_length": training.group_by_length,
            "max_length": training.max_length,
            "weight_decay": training.weight_decay,
        },
    }


def training_benchmark_settings(tier: Tier) -> Settings:
    """Settings of the times of whole training runs, with their table's words."""
    if tier.training_benchmark is None:
        return {}
    return {
        "benchmark": _plain(tier.training_benchmark),
        "model": _plain(tier.model, without=WORDS),
        "name": tier.model.name,
        "precision": tier.training.precision,
    }


def time_budget_settings(tier: Tier) -> Settings:
    """Settings of the times of models that were pruned to a time, with their table's words."""
    if tier.time_budget_benchmark is None:
        return {}
    return {
        "benchmark": _plain(tier.time_budget_benchmark),
        "model": _plain(tier.model, without=WORDS),
        "name": tier.model.name,
    }


def inference_settings(tier: Tier, label: str) -> Settings:
    """Settings of the inference times of the shape with this label."""
    shape = next(shape for shape in tier.inference_benchmarks if shape.label == label)
    return _plain(shape, without={"memory_mb"})


def study_times_settings(tier: Tier) -> Settings:
    """Settings of the times of deployed models, with their table's words.

    The runs' own files are not included.
    """
    studies = tier.studies
    assert studies is not None
    return {
        "batch": studies.batch,
        "description": tier.description,
        "labels": studies.timed,
        "length": studies.length,
        "repeats": studies.repeats,
        "tier": tier.tier,
        "titles": {label: tier.all_methods[label].title for label in sorted(studies.timed)},
    }


def toy_settings(tier: Tier) -> Settings:
    """Settings of the theory's checks on random problems."""
    assert tier.theory is not None
    return _plain(tier.theory, without={"network"})


def probe_settings(tier: Tier, task: str) -> Settings:
    """Settings of the measured loss landscape of the encoder on a task."""
    assert tier.theory is not None
    return {
        "batch_size": tier.training.batch_size,
        "data": _plain(tier.data, without={*WORDS, "validation_rows"}),
        "look": {**_plain(tier.theory.network), "task": task},
        "max_length": tier.training.max_length,
        "model": _plain(tier.model, without=WORDS),
        "threads": tier.threads,
    }


def text_settings(tier: Tier) -> Settings:
    """Settings of the generated plain text."""
    return _plain(study(tier).text.generated)


def tokenizer_settings(tier: Tier) -> Settings:
    """Settings of the tokenizer that the workflow trains."""
    pretraining = study(tier).pretraining
    text = study(tier).text
    return {
        "text": [text.path, text.column, text.held_out, _plain(text.generated)],
        "words": None if pretraining is None else pretraining.tokenizer.words,
    }


def text_run_settings(tier: Tier, runs: Sequence[Run]) -> Settings:
    """Settings of the records of training runs on plain text.

    Args:
        tier: configuration.
        runs: one or more runs of the same experiment and the same model or size.
    """
    first, llama = runs[0], study(tier)
    if first.experiment == "pretraining":
        assert llama.pretraining is not None
        model: Settings = {
            "sizes": _plain(llama.pretraining.sizes[first.name]),
            "tokenizer": _plain(llama.pretraining.tokenizer),
        }
    else:
        assert llama.posttraining is not None
        model = _plain(llama.posttraining.models[first.name], without=WORDS)
    return {
        "methods": {run.label: _gates(tier, run) for run in sorted(runs, key=lambda r: r.label)},
        "model": model,
        "text": _plain(llama.text, without=WORDS),
        "threads": tier.threads,
        "training": _training(training_of(tier, first)),
    }


def pruning_settings(tier: Tier, name: str) -> Settings:
    """Settings of the records of a dense model and its pruned versions.

    The records that they match are not included.
    """
    posttraining = study(tier).posttraining
    assert posttraining is not None
    return {
        "calibration": posttraining.calibration,
        "length": posttraining.training.length,
        "model": _plain(posttraining.models[name], without=WORDS),
        "text": _plain(study(tier).text, without=WORDS),
        "threads": tier.threads,
    }


def llama_step_settings(tier: Tier) -> Settings:
    """Settings of the times of a Llama's steps, with their table's words."""
    llama = study(tier)
    found: Settings = {
        "benchmark": _plain(llama.step_benchmark),
        "description": llama.description,
        "tier": tier.tier,
    }
    if llama.on_task is not None:
        found["task"] = _task_step(task_tier(tier))
    for experiment in ("posttraining", "pretraining"):
        section = getattr(llama, experiment)
        if section is None:
            continue
        # The first model or size is timed, with the first target of each method.
        name = next(iter(section.models if experiment == "posttraining" else section.sizes))
        found[experiment] = {
            "gates": [
                [label, gates.targets[0], _plain(gates, without={*WORDS, "targets"})]
                for label, gates in section.methods.items()
                if not gates.random_biases
            ],
            "length": section.training.length,
            "model": _plain(section.models[name], without=WORDS)
            if experiment == "posttraining"
            else [_plain(section.sizes[name]), _plain(section.tokenizer)],
        }
    return found


def _task_step(tier: Tier) -> Settings:
    """Settings of a training step of the first method of each kind."""
    chosen = first_of_each_kind(tier.methods)
    return {
        "methods": {
            kind: {
                "gates": _plain(chosen[kind].gates),
                "learning_rate": chosen[kind].learning_rate,
                "lora": _plain(chosen[kind].lora),
                "mask": _plain(chosen[kind].mask),
            }
            for kind in sorted(chosen)
        },
        "model": _plain(tier.model, without=WORDS),
        "precision": tier.training.precision,
    }


def _gates(tier: Tier, run: Run) -> Settings:
    """The gates of a run with its own target, empty for a dense run."""
    gates = gates_of(tier, run)
    if gates is None:
        return {}
    return {**_plain(gates, without={*WORDS, "targets"}), "target": run.target}


def _training(training: CausalTraining) -> Settings:
    return _plain(training, without=OF_THE_MACHINE)


def _plain(section: Section | None, without: Collection[str] = ()) -> Settings:
    """A section as plain values with keys sorted at every depth, empty for None."""
    if section is None:
        return {}
    values: Settings = _sorted(section.model_dump(exclude=set(without)))
    return values


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(entry) for entry in value] if isinstance(value, list | tuple) else value
