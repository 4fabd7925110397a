"""A compact model that gets gates again is counted as it was before."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import finegates as fg
from finegates.budget import planned_macs
from finegates.gates.detachment import hold_gates
from finegates.gates.gated_linear import leaf_gates
from support import tiny
from support.shrinking import CONFIG, train

LENGTH = tiny.LENGTH
FAST = ("bert", "gpt2", "qwen3", "t5-gated", "deberta-v2", "mpnet")
OPTIONS = {"criterion": "random", "sequence_length": LENGTH, "progress": False}


def compact_model(architecture: str) -> nn.Module:
    model = tiny.tiny_model(architecture)
    fg.prune(model, target=0.4, **OPTIONS)  # type: ignore[arg-type]
    return fg.compact(model)


def again(small: nn.Module, way: str) -> nn.Module:
    if way == "pruned":
        return fg.prune(small, target=0.2, **OPTIONS)  # type: ignore[arg-type]
    width = way == "gated with width"
    return fg.attach(small, fg.GateConfig(target=0.2, sequence_length=LENGTH, width=width))


WAYS = [(name, way) for name in sorted(tiny.ARCHITECTURES) for way in ("gated", "pruned")]
WAYS += [(name, "gated with width") for name in ("bert", "gpt2", "llama")]


@pytest.mark.parametrize(
    ("architecture", "way"),
    [pair if pair[0] in FAST else pytest.param(*pair, marks=pytest.mark.slow) for pair in WAYS],
)
def test_budgets_are_those_of_the_compact_model(
    architecture: str, way: str, tmp_path: Path
) -> None:
    small = compact_model(architecture)
    before, costs = fg.measure_budget(small), fg.macs(small, 2, LENGTH)
    model = again(small, way)
    fg.save(model, tmp_path / "model")
    for each in (model, fg.load(tmp_path / "model")):
        assert fg.macs(each, 2, LENGTH) == costs
        found = fg.measure_budget(each)
        assert found.all_parameters == before.all_parameters
        assert found.encoder_parameters == before.encoder_parameters
        assert found.head_parameters == before.head_parameters
        assert found.gated_weights == before.gated_weights
        assert found.gated_biases == before.gated_biases
        if way != "pruned":
            gates = sum(p.numel() for g in leaf_gates(each) for p in g.parameters())
            assert found.gate_parameters == gates
            assert found.removed_weights == before.removed_weights
    if way == "pruned":
        assert fg.macs(hold_gates(model), 2, LENGTH) == costs
    smaller = fg.compact(model)
    assert planned_macs(model, 2, LENGTH) == fg.macs(smaller, 2, LENGTH)


def test_low_rank_factors_and_frozen_gates_are_counted() -> None:
    # Fused layers, which other architectures have when compact, come apart with a copy for each.
    small = fg.add_lora(compact_model("gpt2"), rank=3)
    before = fg.measure_budget(small)
    model = fg.attach(small, fg.GateConfig(target=0.2, sequence_length=LENGTH))
    found = fg.measure_budget(model)
    assert found.low_rank_parameters == before.low_rank_parameters
    assert found.all_parameters == before.all_parameters
    for gate in leaf_gates(model):
        gate.requires_grad_(False)
    assert fg.measure_budget(model).gate_parameters == found.gate_parameters
    left = found.trainable_parameters - found.gate_parameters
    assert fg.measure_budget(model).trainable_parameters == left


def test_a_model_that_shrank_while_trained_counts_its_first_gates(tmp_path: Path) -> None:
    gated = fg.attach(tiny.tiny_model("bert"), CONFIG)
    before = fg.measure_budget(gated)
    model, _, _ = train(gated, tmp_path)
    after = fg.measure_budget(model)
    assert sum(g.size for g in leaf_gates(model)) < sum(g.dense_size for g in leaf_gates(model))
    assert after.gate_parameters == before.gate_parameters
    assert after.all_parameters == before.all_parameters
    assert after.gated_biases == before.gated_biases
    model.requires_grad_(True)
    whole = before.all_parameters + before.gate_parameters
    assert fg.measure_budget(model).trainable_parameters == whole
    model.requires_grad_(False)
    assert fg.measure_budget(model).trainable_parameters == 0
