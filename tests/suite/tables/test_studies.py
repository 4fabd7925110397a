"""Studies compare the requested runs in pairs; a shared encoder stores nothing of a task."""

import pandas as pd
import pytest
import torch

from finegates.suite.config.load import ConfigError
from finegates.suite.config.studies import Study
from finegates.suite.figures import draw_study, save_figure
from finegates.suite.runs.finetune import TaskData, finetune, load_tokenizer, predict
from finegates.suite.tables import write_table
from finegates.suite.tables.deployed import times_table
from finegates.suite.tables.properties import properties_table
from finegates.suite.tables.shared_encoder import shared_rows, shared_table
from finegates.suite.tables.study import read_times, setting, study_table
from finegates.suite.timing.control import CONTROL
from finegates.suite.timing.deployed import DENSE, deployed, time_deployed
from support.records import make_record
from support.tier import tiny_tier

GATED = {"experiment": "reference", "gates": {"target": 0.4}}
STUDIES = {
    "tasks": ["cola"],
    "seeds": [0, 1],
    "methods": {
        "further": {**GATED, "continues": {"method": "gates"}},
        "held": {**GATED, "continues": {"method": "gates", "hold": True}},
        "weights": {
            "experiment": "reference",
            "gates": {"target": 0.4, "train_weights": True},
            "continues": {"method": "gates", "hold": True},
        },
        "mask": {"experiment": "mask", "learning_rate": 0.1},
    },
    "compared": {
        "on": {
            "title": "Training on",
            "question": "What changes?",
            "methods": ["gates", "further", "held", "weights"],
        },
        "kinds": {
            "title": "Kinds",
            "question": "Which is it?",
            "methods": ["full", "lora", "mask", "gates", "magnitude"],
            "timed": True,
        },
    },
    "shared": ["lora", "gates", "gates-lora"],
    "properties": ["lora", "mask", "gates"],
    "batch": 2,
    "length": 8,
    "repeats": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="module")
def tier(folder):
    return tiny_tier(folder, studies=STUDIES)


@pytest.fixture(scope="module")
def data(tier):
    return {task: TaskData(tier, task, load_tokenizer(tier)) for task in tier.tasks}


@pytest.fixture(scope="module")
def first(tier, data, folder):
    """A gated run from which others continue: its record and its trained parameters."""
    kept = folder / "gates.safetensors"
    return finetune(tier, data["cola"], "gates", 0, keep=kept, progress=False), kept


def run_on(tier, data, first, label):
    return finetune(tier, data["cola"], label, 0, start=first[1], progress=False)


def test_gates_that_are_held_stay_as_the_first_adaptation_left_them(tier, data, first):
    held = run_on(tier, data, first, "held")
    assert held.closed == first[0].closed
    assert all(e.gates.histogram == first[0].last.gates.histogram for e in held.epochs)
    assert all(e.gates.penalty is None for e in held.epochs)
    assert held.budget.parameters.trainable < first[0].budget.parameters.trainable


def test_with_the_weights_trained_too_the_closed_stay_closed(tier, data, first):
    weights = run_on(tier, data, first, "weights")
    assert weights.closed == first[0].closed
    assert weights.budget.parameters.trainable > 0.9 * weights.model.parameters
    assert weights.compact.max_abs_logit_difference < 1e-4


def test_training_on_starts_where_the_first_run_ended(tier, data, first, folder):
    still = {"epochs": 1, "batch_size": 8, "max_length": 24}
    rate = {"learning_rate": 1e-12, "gate_learning_rate": 1e-12}
    resting = {**STUDIES["methods"]["further"], **rate}
    methods = {**STUDIES["methods"], "further": resting}
    frozen = tiny_tier(folder, training=still, studies={**STUDIES, "methods": methods})
    on = finetune(frozen, data["cola"], "further", 0, start=first[1], progress=False)
    assert on.last.gates.histogram == first[0].last.gates.histogram
    assert on.last.score == pytest.approx(first[0].last.score, abs=1e-6)
    with pytest.raises(ValueError, match="needs what the run of 'gates' kept"):
        finetune(frozen, data["cola"], "further", 0, progress=False)


def test_a_mask_ends_with_half_of_the_weights_and_no_rows_removed(tier, data):
    record = finetune(tier, data["cola"], "mask", 0, progress=False)
    assert record.budget.masked_fraction == 0.5
    assert record.realised_sparsity == 0.0
    assert record.budget.macs.kept == record.budget.macs.dense


def test_what_is_deployed_computes_what_the_run_trained(tier, data, first, folder):
    gates = deployed(tier, "gates", "cola", 0, first[1])
    assert not any("gate" in name.lower() for name, _ in gates.named_parameters())
    kept = {}
    for label in ("full", "lora", "mask", "magnitude"):
        kept[label] = folder / f"{label}.safetensors"
        matched = first[0] if label == "magnitude" else None
        finetune(tier, data["cola"], label, 0, keep=kept[label], matched=matched, progress=False)
    models = {DENSE: deployed(tier, "full", "cola", 0, kept["full"]), "gates": gates}
    for label in ("lora", "mask", "magnitude"):
        matched = first[0] if label == "magnitude" else None
        models[label] = deployed(tier, label, "cola", 0, kept[label], matched)
        assert torch.isfinite(
            predict(models[label], data["cola"].tokenizer, data["cola"].train)
        ).all()
    frame = time_deployed(tier, models, "cola", 0)
    assert list(frame["method"]) == [DENSE, "gates", "lora", "mask", "magnitude", CONTROL]
    assert read_times(frame)[DENSE] == 1.0
    table = times_table(frame, tier, {"cpu": "a processor", "threads": 1})
    assert "a processor" in table.caption


def test_a_shared_encoder_keeps_nothing_of_the_task_before(tier, data, folder):
    files, records = {}, {}
    for task in tier.tasks:
        files[task] = folder / f"shared-{task}.safetensors"
        records[task] = finetune(
            tier, data[task], "gates-lora", 0, keep=files[task], progress=False
        )
    rows = shared_rows(tier, "gates-lora", 0, files, records)
    for row in rows:
        assert row["changed_on_return"] == 0.0
        assert row["shared_score"] == pytest.approx(row["run_score"], abs=1e-6)
        assert row["stored_bytes"] == files[row["task"]].stat().st_size
    table = shared_table(rows, list(records.values()), ["gates-lora"], tier.tasks)
    assert len(table.cells) == 1
    assert len(table.cells[0]) == len(table.header)


def records_of(method: str, scores: dict[int, float], **overrides):
    return [
        make_record(method=method, seed=seed, scores=(50.0, score), **overrides)
        for seed, score in scores.items()
    ]


def test_differences_are_from_the_first_method_and_paired_by_seed():
    study = Study(title="A study", question="Why?", methods=["a", "b"])
    records = records_of("a", {0: 60.0, 1: 70.0}) + records_of("b", {0: 61.0, 1: 73.0})
    rows = study_table("why", study, records, ["cola"], [0, 1]).numbers
    assert rows["average"].tolist() == [65.0, 67.0]
    assert pd.isna(rows["difference"][0])
    assert rows["difference"][1] == 2.0
    # Student's t with one degree of freedom: 2 ± 12.7062 times the standard error of 1 and 3, 1.
    assert (rows["difference_low"][1], rows["difference_high"][1]) == (-10.7062, 14.7062)
    assert rows[["seed_0", "seed_1"]].to_numpy().tolist() == [[60.0, 70.0], [61.0, 73.0]]


def test_a_missing_run_leaves_blanks_and_its_seed_out_of_the_average():
    study = Study(title="A study", question="Why?", methods=["a", "b"])
    records = records_of("a", {0: 60.0, 1: 70.0}) + records_of("b", {1: 73.0})
    table = study_table("why", study, records, ["cola"], [0, 1])
    assert "– 73.0" in table.cells[1]
    assert table.numbers["difference_pairs"][1] == 1


def test_a_setting_is_read_by_its_dotted_name():
    config = {"gates": {"target": 0.4}, "lora": None}
    assert setting(config, "gates.target") == 0.4
    assert setting(config, "lora.rank") is None
    assert setting(config, None) is None


@pytest.mark.parametrize("vary", [None, "gates.target"])
def test_a_study_is_drawn_from_its_table_alone_with_the_same_bytes(tmp_path, vary):
    study = Study(title="A study", question="Why?", methods=["dense", "b", "c"], vary=vary)
    records = records_of("dense", {0: 60.0, 1: 70.0}, target=None)
    records += records_of("b", {0: 61.0, 1: 73.0}, target=0.2)
    records += records_of("c", {0: 51.0, 1: 63.0}, target=0.4)
    table = study_table("why", study, records, ["cola"], [0, 1])
    write_table(table, *(tmp_path / f"why.{suffix}" for suffix in ("csv", "md", "tex")))
    for name in ("first", "second"):
        frame = pd.read_csv(tmp_path / "why.csv")
        save_figure(draw_study(frame, [0, 1], vary=vary), tmp_path / f"{name}.svg")
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()


def test_properties_are_means_of_the_runs_and_blank_where_they_do_not_apply():
    budget = make_record(target=None).budget.model_copy(update={"masked_fraction": 0.5})
    masked = [make_record(method="mask", target=None, seed=0, budget=budget)]
    gated = records_of("gates", {0: 60.0, 1: 70.0}, realised_sparsity=0.25)
    table = properties_table(["mask", "gates"], masked + gated, ["cola"], {"gates": 0.8})
    mask, gates = table.numbers.to_dict("records")
    assert mask["zeros"] == 0.5
    assert mask["structured"] == 0.0
    assert pd.isna(mask["time"])
    assert gates["zeros"] == 0.25
    assert gates["structured"] == 1.0
    assert gates["time"] == 0.8
    assert gates["score"] == 65.0
    with pytest.raises(ValueError, match="no records of 'lora'"):
        properties_table(["lora"], masked, ["cola"], {})


def one_study(*methods: str, **settings):
    return {"compared": {"a": {"title": "t", "question": "q", "methods": methods, **settings}}}


def one_method(**settings):
    return {"methods": {"on": settings}}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"tasks": ["rte"]}, "'rte' is not the tier's"),
        ({"seeds": [0, 0]}, "must not repeat"),
        ({"methods": {"gates": {"experiment": "full"}}}, "'gates' is a method of the tier already"),
        ({"shared": ["full"]}, "'full' is not a method of the tier with a frozen encoder"),
        ({"properties": ["gates-lora"]}, "'gates-lora' is in no timed study"),
        (one_study("gates", "gtes"), "no method 'gtes'.*did you mean 'gates'"),
        (one_study("full", "magnitude"), "'magnitude' needs 'gates'; compare it too"),
        (one_study("gates", "full", vary="gates.goal"), "no setting 'gates.goal'"),
        (one_study("gates", "full", lines="lora.rank"), "lines go with vary"),
        (one_study("gates", "gates"), "must not name a method twice"),
        (
            one_method(**GATED, continues={"method": "lora"}),
            "'lora' is not a method of this tier with the same gates",
        ),
        (
            one_method(experiment="lora", continues={"method": "gates"}),
            "continues goes with the gates",
        ),
        (one_method(experiment="mask", lora={"rank": 2}), "mask is a method of its own"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused_with_its_place(folder, change, complaint):
    with pytest.raises(ConfigError, match=f"(?s){complaint}"):
        tiny_tier(folder, studies={**STUDIES, **change})


def test_what_others_start_from_and_what_is_timed_or_shared_is_kept(tier):
    assert tier.study_methods == [
        "full", "lora", "gates", "magnitude", "further", "held", "weights", "mask",
    ]  # fmt: skip
    assert set(tier.kept) == {
        "full", "lora", "mask", "gates", "magnitude", "gates-lora",
    }  # fmt: skip
