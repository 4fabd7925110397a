"""A target of the original model counts from the dense model, with any gates before and after."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import finegates as fg
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.penalty import sparsity_penalty
from support import tiny
from support.shrinking import CONFIG, train
from support.times import seconds_of_modules

LENGTH = 7
COST = fg.CostModel(
    product=1.0,
    gather=0.3,
    scatter=0.2,
    head_multiple=1,
    output=0.7,
    input=0.4,
    layer=1.7,
    gather_call=2.9,
    scatter_call=2.3,
    attention=1.3,
    score=5.0,
    activation=11.0,
    rest=100.0,
    length=LENGTH,
)
FAST = ("bert", "llama", "t5-gated")
ARCHITECTURES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(tiny.ARCHITECTURES)
]
WAYS = [("all", "all"), ("all", "inner"), ("inner", "all"), ("inner", "inner")]


def gated(model: nn.Module, target: float, **settings: Any) -> nn.Module:
    return fg.attach(model, fg.GateConfig(target=target, sequence_length=LENGTH, **settings))


def budget_of(model: nn.Module) -> MacsPenalty:
    penalty = sparsity_penalty(model)
    assert isinstance(penalty, MacsPenalty)
    return penalty


def compact_model(architecture: str, dimensions: str, cost: fg.CostModel | None) -> nn.Module:
    model = gated(tiny.tiny_model(architecture), 0.01, dimensions=dimensions)
    tiny.scatter_gates(model, 1, 1.0)
    for gate in budget_of(model).gates():
        gate.latent.data[0] = 1.0
    return fg.compact(model.eval(), cost=cost)


def size(model: nn.Module, cost: fg.CostModel | None) -> float:
    """Seconds or multiply-accumulates of a token, counted in the modules."""
    if cost is None:
        return fg.macs(model, 1, LENGTH).total / LENGTH
    return seconds_of_modules(model, cost, LENGTH)


@pytest.mark.parametrize("cost", [None, COST], ids=["macs", "time"])
@pytest.mark.parametrize(("first", "second"), WAYS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_whole_is_the_dense_model(
    architecture: str, first: str, second: str, cost: fg.CostModel | None
) -> None:
    whole = size(tiny.tiny_model(architecture), cost)
    small = compact_model(architecture, first, cost)
    left = size(small, cost)
    removed = 1.0 - 0.9 * left / whole
    model = gated(small, removed, dimensions=second, target_of="original", cost=cost)
    penalty = budget_of(model)
    assert penalty.dense == pytest.approx(whole, rel=1e-6)
    for gate in penalty.gates():
        gate.latent.data[~gate.final()] = 1.0
    if cost is None:
        assert penalty.realised() == pytest.approx(left / whole, rel=1e-6)


@pytest.mark.parametrize(("first", "second"), WAYS)
def test_without_it_the_whole_is_the_given_model(first: str, second: str) -> None:
    small = compact_model("bert", first, None)
    left = size(small, None)
    assert budget_of(gated(small, 0.1, dimensions=second)).dense == pytest.approx(left, rel=1e-6)


def test_a_target_that_is_met_is_refused_where_constants_hold_what_was_removed() -> None:
    small = compact_model("bert", "all", None)
    with pytest.raises(ValueError, match="is met already"):
        gated(small, 0.01, dimensions="inner", target_of="original")


@pytest.mark.parametrize("settings", [{"dimensions": "inner"}, {"uniform": True}], ids=str)
def test_training_keeps_the_asked_fraction_of_the_dense_model(
    settings: dict[str, Any], tmp_path: Any
) -> None:
    length = CONFIG.sequence_length
    whole = fg.macs(tiny.tiny_model("bert"), 1, length).total
    small = compact_model("bert", "all", None)
    target = 1.0 - 0.8 * fg.macs(small, 1, length).total / whole
    config = fg.GateConfig(target=target, sequence_length=length, target_of="original", **settings)
    trained, _, _ = train(fg.attach(small, config), tmp_path)
    kept = fg.macs(fg.compact(trained), 1, length).total / whole
    assert kept == pytest.approx(1.0 - target, abs=0.03)
