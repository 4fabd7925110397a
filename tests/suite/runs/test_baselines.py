"""Runs of the alternatives to gates: one-shot pruning and fewer layers."""

from pathlib import Path

import pytest

from finegates.suite.config.methods import LayerSettings, Method
from finegates.suite.runs.finetune import TaskData, _training_arguments, finetune, load_tokenizer
from support.tier import tiny_tier

METHODS = {
    "full": {"experiment": "full"},
    "taylor": {"experiment": "one_shot", "prune": {"target": 0.4, "after": "full", "rows": 16}},
    "taylor-lora": {
        "experiment": "one_shot",
        "prune": {"target": 0.4, "after": "full", "rows": 16},
        "lora": {"rank": 2},
    },
    "magnitude": {
        "experiment": "one_shot",
        "prune": {"match": "taylor", "criterion": "magnitude"},
        "distillation": {"teacher": "full"},
    },
    "independent": {
        "experiment": "one_shot",
        "prune": {"target": 0.4, "after": "full", "rows": 16, "dimensions": "independent"},
    },
    "shallow": {"experiment": "fewer_layers", "layers": {"count": 1}},
    "importance": {
        "experiment": "structured",
        "gates": {"target": 0.4, "noise_std": 0.0},
        "gate_learning_rate": 0.0,
    },
}


@pytest.fixture(scope="module")
def tier(tmp_path_factory):
    return tiny_tier(tmp_path_factory.mktemp("tier"), methods=METHODS)


@pytest.fixture(scope="module")
def data(tier):
    return TaskData(tier, "cola", load_tokenizer(tier))


@pytest.fixture(scope="module")
def start(tier, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "full.safetensors"
    finetune(tier, data, "full", 0, keep=path, progress=False)
    return path


def kept(record) -> float:
    return record.budget.macs.kept_fraction


# The groups of this encoder are coarse: one of two heads is a quarter of a layer.
COARSE = 0.1


@pytest.mark.filterwarnings("ignore:.*of the MACs are kept:UserWarning")
def test_what_is_pruned_in_one_shot_keeps_the_budget_through_its_repair(tier, data, start):
    pruned = finetune(tier, data, "taylor", 0, start=start, progress=False)
    assert kept(pruned) == pytest.approx(0.6, abs=COARSE)
    assert pruned.compact.encoder_macs == pruned.budget.macs.kept
    assert pruned.compact.max_abs_logit_difference < 1e-5
    assert pruned.budget.parameters.trainable == pruned.budget.parameters.all
    low_rank = finetune(tier, data, "taylor-lora", 0, start=start, progress=False)
    # The same choice with another repair; paths are peft's.
    assert list(low_rank.closed.values()) == list(pruned.closed.values())
    assert low_rank.budget.parameters.trainable < pruned.budget.parameters.trainable
    other = finetune(tier, data, "magnitude", 0, matched=pruned, start=start, progress=False)
    assert kept(other) == pytest.approx(kept(pruned), abs=COARSE)
    assert other.closed != pruned.closed


@pytest.mark.filterwarnings("ignore:.*of the MACs are kept:UserWarning")
def test_independent_rows_and_columns_are_pruned_to_the_same_budget_and_share_nothing(
    tier, data, start
):
    record = finetune(tier, data, "independent", 0, start=start, progress=False)
    assert kept(record) == pytest.approx(0.6, abs=COARSE)
    assert record.compact.encoder_macs == record.budget.macs.kept
    assert record.compact.max_abs_logit_difference < 1e-5
    shared = finetune(tier, data, "taylor", 0, start=start, progress=False)
    # With shared groups, queries and keys close their inputs together.
    for made, alike in ((shared, True), (record, False)):
        inputs = {
            tuple(made.closed[path].cols for path in made.closed if path.endswith(f".{name}"))
            for name in ("query", "key", "value")
        }
        assert (len(inputs) == 1) is alike


def test_a_shallow_encoder_keeps_the_macs_of_its_layers(tier, data):
    record = finetune(tier, data, "shallow", 0, progress=False)
    assert kept(record) == 0.5
    assert record.compact is None


def test_gates_at_rate_0_are_closed_by_importance_alone(tier, data):
    record = finetune(tier, data, "importance", 0, progress=False)
    assert record.last.gates.closed + record.last.gates.open == 1.0
    assert kept(record) == pytest.approx(0.6, abs=COARSE)


def test_layers_that_stay_are_the_first_or_at_even_distances():
    assert LayerSettings(count=3).kept(6) == [0, 1, 2]
    assert LayerSettings(count=3, which="spread").kept(6) == [1, 3, 5]
    assert LayerSettings(count=4, which="spread").kept(6) == [0, 2, 3, 5]
    with pytest.raises(ValueError, match=r"layers.count: 7 of 6"):
        LayerSettings(count=7).kept(6)


def test_a_method_may_have_the_epochs_of_two_runs_and_its_record_says_so(tmp_path):
    methods = {"longer": {"experiment": "full", "epochs_factor": 2}}
    tier = tiny_tier(
        tmp_path, methods=methods, training={**TRAINING, "epochs_by_task": {"stsb": 2}}
    )
    for task, epochs in (("cola", 2), ("stsb", 4)):
        data = TaskData(tier, task, load_tokenizer(tier))
        record = finetune(tier, data, "longer", 0, progress=False)
        assert [epoch.epoch for epoch in record.epochs] == list(range(1, epochs + 1))
        assert record.config.training.epochs == epochs


TRAINING = {"epochs": 1, "batch_size": 8, "max_length": 24}


def test_a_warm_up_goes_with_every_schedule(tier, data):
    found = []
    for schedule in ("constant", "linear"):
        method = Method(title="x", learning_rate=1.0, schedule=schedule, warmup=0.1)
        given = _training_arguments(tier, "cola", method, 0, str(Path(tier.results)), False)
        found.append((given.lr_scheduler_type.value, given.get_warmup_steps(50)))
    assert found == [("constant_with_warmup", 5), ("linear", 5)]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"prune": {"criterion": "taylor"}}, r"prune.*target, match"),
        ({"prune": {"target": 0.4, "after": "fall"}}, r"prune\.after: 'fall'.*did you mean 'full'"),
        ({"prune": {"match": "fall"}}, r"prune\.match: 'fall'"),
        ({"prune": {"target": 0.4}, "layers": {"count": 1}}, "leave gates, magnitude, mask"),
        (
            {"prune": {"target": 0.4, "after": "full"}, "distillation": {"teacher": "full"}},
            "leave prune.after out",
        ),
        ({"prune": {"target": 0.4, "criterium": "taylor"}}, "criterium"),
        (
            {"prune": {"target": 0.4, "criterion": "magnitude", "dimensions": "independent"}},
            "'independent' goes with criterion 'taylor'",
        ),
    ],
)
def test_a_wrong_setting_is_refused_by_its_key(tmp_path, method, said):
    methods = {"full": {"experiment": "full"}, "bad": {"experiment": "one_shot", **method}}
    with pytest.raises(ValueError, match=said):
        tiny_tier(tmp_path, methods=methods)
