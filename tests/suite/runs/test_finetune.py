"""One run from tables to record, on a tiny encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch

from finegates.suite.config.tasks import DataError
from finegates.suite.models.sources import (
    ModelError,
    data_files,
    data_folder,
    load_classifier,
    model_folder,
)
from finegates.suite.runs.finetune import TaskData, finetune, load_tokenizer
from finegates.suite.runs.record import read_record, write_record
from support.tier import tiny_tier


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tier")


@pytest.fixture(scope="module")
def tier(folder):
    return tiny_tier(folder)


@pytest.fixture(scope="module")
def data(tier):
    return {task: TaskData(tier, task, load_tokenizer(tier)) for task in tier.tasks}


@pytest.fixture(scope="module")
def gated(tier, data):
    return finetune(tier, data["cola"], "gates", 0, progress=False)


def test_a_record_holds_what_tables_ask_for(gated, tmp_path):
    assert [e.epoch for e in gated.epochs] == [1, 2]
    assert gated.last == gated.epochs[-1]
    assert gated.best.score == max(e.score for e in gated.epochs)
    assert gated.budget.parameters.trainable > gated.budget.parameters.gates > 0
    assert gated.data.train_rows == 48
    assert len(gated.data.splits["train"].sha256) == 64
    assert gated.model.sha256
    assert gated.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert all(v >= 0 for v in gated.timing.values())
    write_record(gated, tmp_path / "r.json")
    assert read_record(tmp_path / "r.json") == gated


def test_the_compact_model_scores_as_the_gated_one_and_is_smaller(gated):
    assert gated.realised_sparsity == gated.last.gates.realised_sparsity > 0
    assert gated.compact.max_abs_logit_difference < 1e-5
    assert gated.compact.parameters < gated.model.parameters
    assert gated.compact.encoder_macs == gated.budget.macs.kept
    assert gated.budget.macs.kept < gated.budget.macs.dense


def test_the_same_run_gives_the_same_record_but_for_times(tier, data, gated):
    again = finetune(tier, data["cola"], "gates", 0, progress=False)
    assert again.model_copy(update={"timing": {}}) == gated.model_copy(update={"timing": {}})


def test_a_label_decides_nothing(tier, data, gated):
    """Methods with the same settings are the same run, so pairs differ only by their settings."""
    methods = {"gates": tier.methods["gates"], "other": tier.methods["gates"]}
    renamed = tier.model_copy(update={"methods": methods})
    again = finetune(renamed, data["cola"], "other", 0, progress=False)
    assert again.seeds == gated.seeds
    assert [e.score for e in again.epochs] == [e.score for e in gated.epochs]
    assert again.last.train_loss == gated.last.train_loss


def test_another_seed_gives_another_run(tier, data, gated):
    other = finetune(tier, data["cola"], "gates", 1, progress=False)
    assert other.last.train_loss != gated.last.train_loss


def test_magnitude_pruning_matches_the_gated_runs_sparsity_layer_by_layer(tier, data, gated):
    record = finetune(tier, data["cola"], "magnitude", 0, matched=gated, progress=False)
    assert record.closed == gated.closed
    assert record.realised_sparsity == gated.realised_sparsity
    assert {e.gates.realised_sparsity for e in record.epochs} == {gated.realised_sparsity}
    with pytest.raises(ValueError, match="needs the record of 'gates'"):
        finetune(tier, data["cola"], "magnitude", 0, progress=False)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", ["full", "random", "lora", "gates-lora"])
def test_every_method_runs_on_regression_too(tier, data, method):
    record = finetune(tier, data["stsb"], method, 0, progress=False)
    assert set(record.last.metrics) == {"pearson", "spearman"}
    assert (record.compact is not None) == (method == "gates-lora")


def test_bfloat16_training_keeps_gates_and_compact_equal_in_float32(folder):
    tier = tiny_tier(
        folder,
        training={"epochs": 1, "batch_size": 8, "max_length": 24, "precision": "bfloat16"},
    )
    record = finetune(
        tier, TaskData(tier, "cola", load_tokenizer(tier)), "gates", 0, progress=False
    )
    assert record.compact.max_abs_logit_difference < 1e-5


def test_a_method_may_choose_its_own_precision(folder, data):
    epochs = {"epochs": 1, "batch_size": 8, "max_length": 24}
    # A high learning rate, so that the logged digits differ.
    method = {"experiment": "lora", "learning_rate": 0.1}
    half = tiny_tier(folder, training={**epochs, "precision": "bfloat16"}, methods={"lora": method})
    own = tiny_tier(folder, training=epochs, methods={"lora": {**method, "precision": "bfloat16"}})
    single = tiny_tier(folder, training=epochs, methods={"lora": method})
    losses = [
        finetune(tier, data["cola"], "lora", 0, progress=False).last.train_loss
        for tier in (half, own, single)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_methods_start_from_the_same_head(tier):
    one, other = (load_classifier(tier, "cola", 5) for _ in range(2))
    for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(p, q), name


def test_a_random_start_shares_nothing_with_the_pretrained_one(tier):
    pretrained, random = (
        load_classifier(tier, "cola", 5, init) for init in ("pretrained", "random")
    )
    name = "roberta.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(pretrained.get_parameter(name), random.get_parameter(name))


def test_validation_rows_keep_their_labels_when_sorted_by_length(data):
    lengths = [len(row["input_ids"]) for row in data["cola"].validation]
    assert lengths == sorted(lengths, reverse=True)
    assert np.array_equal(data["cola"].labels, [r["labels"] for r in data["cola"].validation])


def test_what_is_not_there_is_named_with_the_remedy(folder, tier, tmp_path):
    assert data_folder(tier) == str(folder / "data")
    assert len(data_files(tier)) == 4
    absent = {"name": "x", "path": str(tmp_path / "absent")}
    with pytest.raises(ModelError, match=r"holds no config.json; set model.path"):
        model_folder(tiny_tier(folder, model=absent))
    with pytest.raises(DataError, match=r"missing .* set data.path"):
        data_files(tiny_tier(folder, data=absent))
    package = {"name": "x", "package": "no_such_package/model"}
    with pytest.raises(ModelError, match="'no_such_package' is not installed"):
        model_folder(tiny_tier(folder, model=package))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load model 'x'.*check the folder"):
        load_classifier(tiny_tier(folder, model={"name": "x", "path": str(broken)}), "cola", 0)


def test_shared_gates_can_keep_the_macs_of_another_run(folder, data, gated):
    methods = {
        "gates": {"experiment": "reference", "gates": {"target": 0.4}},
        "same": {
            "experiment": "structured",
            "gates": {"match": "gates"},
            "gate_learning_rate": 0.05,
        },
    }
    tier = tiny_tier(folder, methods=methods)
    record = finetune(tier, data["cola"], "same", 0, matched=gated, progress=False)
    removed = 1 - gated.budget.macs.kept / gated.budget.macs.dense
    assert record.config.gates.target == removed
    assert record.config.gates.match == "gates"
    with pytest.raises(ValueError, match="needs the record of 'gates'"):
        finetune(tier, data["cola"], "same", 0, progress=False)


@pytest.mark.parametrize("task", ["cola", "stsb"])
def test_a_distilled_run_starts_as_its_teacher_ended(tier, data, tmp_path, task):
    weights = tmp_path / "teacher.safetensors"
    full = finetune(tier, data[task], "full", 0, keep=weights, progress=False)
    assert full.model_copy(update={"timing": {}}) == finetune(
        tier, data[task], "full", 0, progress=False
    ).model_copy(update={"timing": {}}), "writing weights changes nothing"
    still = {"epochs": 1, "batch_size": 8, "max_length": 24}
    rates = {"learning_rate": 1e-12, "gate_learning_rate": 1e-12, "gates": {"target": 0.0}}
    method = {"experiment": "structured", "distillation": {"teacher": "full"}, **rates}
    resting = tiny_tier(
        Path(tier.data.path).parent,
        training=still,
        methods={"full": {"experiment": "full"}, "distilled": method},
    )
    record = finetune(resting, data[task], "distilled", 0, start=weights, progress=False)
    assert record.last.score == pytest.approx(full.last.score, abs=0.5)
    with pytest.raises(ValueError, match="needs what the run of .full. kept"):
        finetune(tier, data[task], "distilled", 0, progress=False)


@pytest.mark.parametrize("method", ["structured", "structured-lora"])
def test_shared_gates_end_closed_or_open_at_the_asked_cost(tier, data, method):
    record = finetune(tier, data["cola"], method, 0, progress=False)
    target = tier.methods[method].gates.target
    assert record.last.gates.half_open == 0.0
    counted = record.budget.parameters
    assert counted.trainable > counted.gates + counted.head, "they were trained, then rest"
    assert record.last.gates.closed + record.last.gates.open == 1.0
    # At this tiny size one dimension of a head is many percentage points.
    kept = record.compact.encoder_macs / record.budget.macs.dense
    assert abs(kept - (1 - target)) < 0.2
    assert record.compact.max_abs_logit_difference < 1e-4
