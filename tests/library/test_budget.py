"""Budgets: the numbers of the paper's models, and laws that relate the counts."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification

from finegates.adapters import adapter_for
from finegates.budget import macs, measure_budget, planned_macs
from finegates.compaction import compact
from finegates.gates.attachment import attach, attach_fixed
from finegates.gates.config import GateConfig
from finegates.gates.gate import FixedGate
from finegates.gates.gated_linear import GatedLinear, gated_layers
from support import tiny

# https://arxiv.org/abs/1907.11692, table of architectures; two labels.
BASE = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
LARGE = {
    **BASE,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}


def roberta(sizes: dict[str, int]) -> nn.Module:
    with torch.device("meta"):
        return RobertaForSequenceClassification(RobertaConfig(**sizes))


@pytest.mark.parametrize(
    ("sizes", "everything", "weights", "gates", "biases", "percent"),
    [
        (BASE, 124_647_170, 84_934_656, 165_888, 82_944, 0.133),
        (LARGE, 355_361_794, 301_989_888, 442_368, 221_184, 0.124),
    ],
    ids=["base", "large"],
)
def test_numbers_of_the_paper(
    sizes: dict[str, int], everything: int, weights: int, gates: int, biases: int, percent: float
) -> None:
    model = attach(roberta(sizes), GateConfig(preset="reference"))
    counted = measure_budget(model)
    assert counted.all_parameters == everything
    assert counted.gated_weights == weights
    assert counted.gate_parameters == gates
    assert counted.gated_biases == biases
    assert round(100 * gates / everything, 3) == percent
    hidden = sizes.get("hidden_size", 768)
    head = hidden * hidden + hidden + 2 * hidden + 2
    assert counted.head_parameters == head
    norms = sizes.get("num_hidden_layers", 12) * 4 * hidden
    assert counted.encoder_parameters == weights + biases + norms
    assert counted.trainable_parameters == gates + biases + head
    assert counted.low_rank_parameters == 0
    assert counted.removable_weights is None, "gates on the meta device have no values"
    assert counted.realised_sparsity is None


def test_forty_percent_of_what() -> None:
    """40 % of the 125 M or 355 M parameters, as a share of the gated weights (fact 3)."""
    assert round(100 * 0.4 * 124_647_170 / 84_934_656, 1) == 58.7
    assert round(100 * 0.4 * 355_361_794 / 301_989_888, 1) == 47.1


def test_closing_s_of_both_sides_removes_more_than_s() -> None:
    """s of the rows and s of the columns is 1 - (1 - s)^2 of the weights: 64 % at s = 0.4."""
    gate = FixedGate(torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]))
    counted = measure_budget(GatedLinear(nn.Linear(5, 5), gate, gate))
    assert counted.realised_sparsity == pytest.approx(0.64)
    assert counted.removable_weights == 25 - 9
    assert counted.closed_row_fraction == counted.closed_col_fraction == 0.4
    assert counted.encoder_parameters is None, "no adapter, no encoder"
    assert counted.gate_parameters == 0, "constant gates"


def test_dense_cost_of_roberta_base() -> None:
    cost = macs(roberta(BASE), 1, 128)
    assert cost.linear == 128 * 84_934_656
    assert cost.attention == 12 * 2 * 128 * 128 * 768
    assert cost.total == cost.linear + cost.attention
    assert macs(roberta(BASE), 4, 128).total == 4 * cost.total


def test_planned_cost_without_building() -> None:
    """The plan needs only gate values, so the weights may be on the meta device."""
    model = roberta(BASE)
    first = adapter_for(model).blocks(model)[0].feed_forward
    assert first is not None
    half = torch.cat([torch.zeros(1536), torch.ones(1536)])
    attach_fixed(model, {first.up: (half, None), first.down: (None, half)})
    planned = planned_macs(model, 1, 128)
    saved = 2 * 1536 * 768 * 128
    assert macs(model, 1, 128).total - planned.total == saved
    counted = measure_budget(model)
    assert counted.removable_weights == counted.removed_weights == saved // 128


def test_pairing_removes_more_than_each_layer_alone() -> None:
    model = tiny.tiny_model("bert")
    first = adapter_for(model).blocks(model)[0].feed_forward
    assert first is not None
    some = torch.tensor([0.0] * 5 + [1.0] * 15)
    others = torch.tensor([1.0] * 15 + [0.0] * 5)
    attach_fixed(model, {first.up: (some, None), first.down: (None, others)})
    counted = measure_budget(model)
    assert counted.removable_weights == 2 * 5 * 12
    assert counted.removed_weights == 2 * 10 * 12
    small = measure_budget(compact(model))
    assert small.gated_weights == counted.gated_weights
    assert small.removed_weights == counted.removed_weights


def test_compact_model_is_counted_as_it_is() -> None:
    model = attach(tiny.tiny_model("roberta"), GateConfig(preset="reference"))
    tiny.scatter_gates(model)
    before, small = measure_budget(model), compact(model)
    after = measure_budget(small)
    assert after.all_parameters == sum(p.numel() for p in small.parameters())
    assert after.gate_parameters == 0
    assert after.removed_weights == before.removed_weights
    gone = before.gated_biases - after.gated_biases + (before.removed_weights or 0)
    assert before.all_parameters - after.all_parameters == gone
    assert after.trainable_parameters == after.all_parameters
    assert before.closed_row_fraction is not None
    assert after.closed_row_fraction is not None
    assert after.closed_row_fraction >= before.closed_row_fraction, "pairing closes more"


def test_shared_gates_and_tied_weights_count_once() -> None:
    model = attach(tiny.tiny_model("bert", "language"), GateConfig(preset="reference"))
    before = measure_budget(model)
    layers = gated_layers(model)
    inputs = [layer for layer in layers.values() if layer.in_features == 12]
    for layer in inputs:
        layer.cols = inputs[0].cols
    assert measure_budget(model).gate_parameters == before.gate_parameters - 12 * (len(inputs) - 1)
    unique = {id(p): p.numel() for p in tiny.tiny_model("bert", "language").parameters()}
    assert before.all_parameters == sum(unique.values())


def test_plain_values() -> None:
    model = attach(tiny.tiny_model("bert"), GateConfig(preset="reference"))
    counted = measure_budget(model).as_dict()
    assert json.loads(json.dumps(counted)) == counted
    assert counted["realised_sparsity"] == 0.0, "no gate is closed at the start"
    assert macs(model, 2, 3).as_dict()["length"] == 3


@pytest.mark.parametrize(("batch", "length"), [(0, 1), (1, 0)])
def test_an_empty_batch_has_no_cost_to_speak_of(batch: int, length: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        macs(tiny.tiny_model("bert"), batch, length)
