"""A budget on predicted time: gated, compact and planned times agree, and the target is met."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import finegates as fg
from finegates.compaction.predicted_time import predicted_time
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.penalty import sparsity_penalty
from support import tiny
from support.times import seconds_of_modules

LENGTH = 7
# Every kind of work has a price of its own, so that a count left out would be seen.
PLANTED = fg.CostModel(
    product=1.0,
    gather=3.0,
    scatter=2.0,
    head_multiple=2,
    output=0.7,
    input=0.4,
    layer=17.0,
    gather_call=29.0,
    scatter_call=23.0,
    attention=1.3,
    score=5.0,
    activation=11.0,
    rest=1000.0,
    length=LENGTH,
)
FAST = ("bert", "llama", "t5-gated")
ARCHITECTURES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(tiny.ARCHITECTURES)
]
OPTIONS: list[dict[str, Any]] = [{}, {"parts": True}, {"dimensions": "inner", "parts": True}]


def config(**settings: Any) -> fg.GateConfig:
    given = {"cost": PLANTED, "sequence_length": LENGTH, "target_time": 0.99, **settings}
    return fg.GateConfig(**given)


def budget_of(model: nn.Module) -> MacsPenalty:
    penalty = sparsity_penalty(model)
    assert isinstance(penalty, MacsPenalty)
    return penalty


def seconds(model: nn.Module, cost: fg.CostModel = PLANTED) -> float:
    return seconds_of_modules(model, cost, LENGTH)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gated_time_is_compact_time(architecture: str, options: dict[str, Any]) -> None:
    dense = seconds(tiny.tiny_model(architecture))
    model = fg.attach(tiny.tiny_model(architecture), config(**options))
    assert budget_of(model).dense == pytest.approx(dense, rel=1e-9)
    for seed in range(3):
        tiny.scatter_gates(model, seed)
        small = fg.compact(model.eval(), cost=PLANTED)
        expected = seconds(small)
        for each in (model, small):
            assert predicted_time(each, PLANTED, LENGTH) == pytest.approx(expected, rel=1e-9)
        assert budget_of(model).realised() == pytest.approx(expected / dense, rel=1e-9)
        assert expected < dense


@pytest.mark.parametrize("dimensions", ["all", "inner"])
@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
def test_the_rest_takes_the_share_of_the_hidden_dimensions(
    architecture: str, dimensions: str, tmp_path: Path
) -> None:
    """Of a gated model, the compact one, and the one that is read back."""
    model = tiny.tiny_model(architecture)
    size = model.get_input_embeddings().weight.shape[1]
    fg.attach(model, config(width=True, dimensions=dimensions))
    tiny.scatter_gates(model, 1)
    small = fg.compact(model.eval(), cost=PLANTED)
    kept = small.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    assert kept < size
    expected = seconds(small) - (1 - kept / size) * PLANTED.rest
    fg.save(small, tmp_path / "small")
    for each in (model, small, fg.load(tmp_path / "small")):
        assert predicted_time(each, PLANTED, LENGTH) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("wanted", [0.9, 0.6, 0.4])
def test_closing_meets_the_time_within_one_dimension(
    wanted: float, options: dict[str, Any]
) -> None:
    wide = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
    model = tiny.tiny_model("bert", **wide)
    dense = seconds(model)
    fg.attach(model, config(target_time=wanted, **options))
    penalty = budget_of(model)
    generator = torch.Generator().manual_seed(0)
    for gate in penalty.gates():
        assert gate.importance is not None
        gate.importance.copy_(torch.rand(gate.size, generator=generator))
    kept = penalty.close_least()
    assert kept == pytest.approx(wanted, abs=0.011)
    found = seconds(fg.compact(model.eval(), cost=PLANTED))
    assert found / dense == pytest.approx(kept, rel=1e-9)


def test_where_a_score_costs_most_heads_close_first() -> None:
    """The order of closing is importance per second, not per multiply-accumulate."""
    kept = []
    for cost in (fg.CostModel(head_multiple=1), fg.CostModel(head_multiple=1, score=1e-6)):
        model = fg.attach(
            tiny.tiny_model("bert"),
            fg.GateConfig(target_time=0.7, cost=cost, sequence_length=LENGTH, dimensions="inner"),
        )
        penalty = budget_of(model)
        for gate in penalty.gates():
            assert gate.importance is not None
            # A head has about ten times the multiply-accumulates of a feed-forward dimension.
            gate.importance.fill_(30.0 if gate.size == 3 else 1.0)
        penalty.close_least()
        heads = [g for part in penalty.structure if (g := getattr(part, "heads", None)) is not None]
        kept.append(sum(int((gate.value() > 0).sum()) for gate in heads))
    assert kept[1] < kept[0] == 6


def test_the_gradient_is_of_the_time_that_opening_costs() -> None:
    """By a finite difference of the time without movement, at openness between zero and one."""
    model = fg.attach(tiny.tiny_model("bert"), config(target_time=0.5))
    penalty = budget_of(model)
    generator = torch.Generator().manual_seed(0)
    gates = list(penalty.gates())
    opened = {g: torch.rand(g.size, generator=generator, dtype=torch.float64) for g in gates}
    slopes = torch.autograd.grad(
        penalty._macs(lambda gate: opened[gate].requires_grad_()), list(opened.values())
    )
    for gate, slope in zip(gates, slopes, strict=True):
        with torch.no_grad():
            values = []
            for step in (-1e-4, 1e-4):
                moved = {
                    **opened,
                    gate: opened[gate]
                    .clone()
                    .index_add_(0, torch.tensor([0]), torch.tensor([step], dtype=torch.float64)),
                }
                values.append(float(penalty._macs(moved.__getitem__)))
        assert float(slope[0]) == pytest.approx((values[1] - values[0]) / 2e-4, rel=1e-6)
        assert float(slope[0]) > 0


@pytest.mark.parametrize("options", [*OPTIONS, {"width": True}], ids=str)
def test_pruning_meets_the_time_of_the_compact_model(options: dict[str, Any]) -> None:
    wide = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
    model = tiny.tiny_model("bert", **wide)
    dense = seconds(model)
    cost = dataclasses.replace(PLANTED, rest=0.0) if "width" in options else PLANTED
    dense += cost.rest - PLANTED.rest
    fg.prune(
        model, target_time=0.6, cost=cost, criterion="random", sequence_length=LENGTH,
        progress=False, **options,
    )  # fmt: skip
    found = seconds(fg.compact(model, cost=cost), cost)
    assert found / dense == pytest.approx(0.6, abs=0.011)


def test_work_that_no_gate_removes_bounds_the_target() -> None:
    model = tiny.tiny_model("bert")
    dense = seconds(model)
    heavy = dataclasses.replace(PLANTED, rest=PLANTED.rest + dense)  # more than half of the time
    with pytest.raises(ValueError, match=r"target_time 0.5 cannot be reached.* starts at 0\.\d+"):
        fg.attach(model, config(target_time=0.5, cost=heavy))
    assert not fg.gated_layers(model)
    try:
        fg.attach(model, config(target_time=0.5, cost=heavy))
    except ValueError as error:
        least = float(str(error).split("starts at ")[1].split(". ")[0])
    fg.attach(model, config(target_time=least, cost=heavy))
    penalty = budget_of(model)
    for gate in penalty.gates():
        assert gate.importance is not None
        gate.importance.fill_(1.0)
    assert penalty.close_least() == pytest.approx(least, abs=0.011)
    with pytest.raises(ValueError, match="target_time 0.5 cannot be reached"):
        fg.prune(
            tiny.tiny_model("bert"), target_time=0.5, cost=heavy, criterion="random",
            sequence_length=LENGTH, progress=False,
        )  # fmt: skip


def test_contradictions_are_refused() -> None:
    cost = fg.CostModel()
    for settings, message in (
        ({"target": 0.4, "target_time": 0.5, "cost": cost}, "two budgets"),
        ({"target_time": 0.5}, "needs measured costs"),
        ({"target_time": 0.0, "cost": cost}, r"fraction in \(0, 1\]"),
        ({"target_time": 1.5, "cost": cost}, r"fraction in \(0, 1\]"),
        ({"target_time": 0.5, "cost": cost, "uniform": True}, "cost cannot be combined"),
        ({"target_time": 0.5, "cost": cost, "preset": "reference"}, "target_time cannot be"),
        ({"cost": cost, "preset": "reference"}, "cost cannot be"),
        ({"target_time": 0.5, "cost": PLANTED}, "at sequences of 7 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            fg.GateConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="cost must be a CostModel, got the string .measured"):
        fg.GateConfig(target_time=0.5, cost="measured")  # type: ignore[arg-type]
    for other in ({"dtype": "float64"}, {"device": "cuda"}):
        measured = dataclasses.replace(PLANTED, **other)
        model = tiny.tiny_model("bert", dtype=torch.float32)
        with pytest.raises(ValueError, match=f"measured on {next(iter(other))}"):
            fg.attach(model, config(cost=measured))
        with pytest.raises(ValueError, match=f"measured on {next(iter(other))}"):
            fg.prune(
                model, target_time=0.6, cost=measured, criterion="random", sequence_length=LENGTH,
                progress=False,
            )  # fmt: skip
        assert not fg.gated_layers(model)
    for settings in ({"target": 0.4, "target_time": 0.5, "cost": cost}, {"target_time": 0.5}):
        with pytest.raises(ValueError, match="two budgets|needs measured costs"):
            fg.prune(tiny.tiny_model("bert"), criterion="random", **settings)


def test_a_target_time_is_the_target_of_what_is_removed() -> None:
    cost = fg.CostModel()
    timed = fg.GateConfig(target_time=0.75, cost=cost)
    assert timed.target == 0.25
    assert dataclasses.replace(timed, seed=3).target_time == 0.75
    assert fg.GateConfig(target=0.25, cost=cost).removed() == timed.removed()
    assert fg.GateConfig().target == 0.4
    assert "cost" not in fg.GateConfig().as_dict()
    assert "target_time" not in fg.GateConfig().as_dict()
    stored = json.loads(json.dumps(timed.as_dict()))
    assert fg.CostModel.of(stored["cost"]) == cost


@pytest.mark.parametrize("hundredths", range(1, 100))
def test_both_fractions_are_taken_exactly_if_they_add_up_to_one(hundredths: int) -> None:
    """As decimals: ``1 - 0.7`` is not the number ``0.3``."""
    cost, stays, goes = fg.CostModel(), hundredths / 100, (100 - hundredths) / 100
    both = fg.GateConfig(target=goes, target_time=stays, cost=cost)
    assert both == fg.GateConfig(target_time=stays, cost=cost)
    again = json.loads(json.dumps(both.as_dict()))
    assert fg.GateConfig(**again | {"cost": cost, "schedule": both.schedule}) == both
    with pytest.raises(ValueError, match=r"two budgets: .*add up to 1; leave one"):
        fg.GateConfig(target=goes - 1e-12, target_time=stays, cost=cost)


def test_a_wanted_time_is_changed_by_changing_both_fractions() -> None:
    timed = fg.GateConfig(target_time=0.5, cost=fg.CostModel())
    with pytest.raises(ValueError, match=r"replace\(config, target=None, target_time=\.\.\.\)"):
        dataclasses.replace(timed, target_time=0.4)
    changed = dataclasses.replace(timed, target=None, target_time=0.4)
    assert changed == fg.GateConfig(target_time=0.4, cost=fg.CostModel())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_time": "0.5"}, "target_time must be a number, got the string '0.5'"),
        ({"target_time": True}, "target_time must be a number, got True"),
        ({"target_time": torch.tensor(0.5)}, "target_time must be a number, got a Tensor"),
        ({"target": "0.4"}, "target must be a number, got the string '0.4'"),
        ({"target": False}, "target must be a number, got False"),
        ({"cost": fg.CostModel}, "cost must be a CostModel, got the class CostModel; measure one"),
        ({"cost": {}}, "cost must be a CostModel, got a dict"),
        ({"sequence_length": "128"}, "sequence_length must be an integer, got the string '128'"),
        ({"sequence_length": 128.0}, "sequence_length must be an integer, got a float"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fg.GateConfig(**{"cost": fg.CostModel(), **settings})
    with pytest.raises(TypeError, match=message):
        fg.prune(
            tiny.tiny_model("bert"), criterion="magnitude", **{"cost": fg.CostModel(), **settings}
        )


def test_what_is_not_a_cost_model_is_refused_wherever_one_is_taken() -> None:
    model = fg.attach(tiny.tiny_model("bert"), fg.GateConfig(sequence_length=LENGTH))
    tiny.scatter_gates(model)
    for cost in (fg.CostModel, "measured", {}):
        for function in (fg.compact, fg.plan_compaction):
            with pytest.raises(TypeError, match="cost must be a CostModel, got "):
                function(model.eval(), cost=cost)  # type: ignore[operator]
        with pytest.raises(TypeError, match="cost must be a CostModel, got "):
            fg.use_products(tiny.tiny_model("bert"), cost)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["penalty_weight", "noise_std"])
def test_so_are_numbers_of_gates(option: str) -> None:
    with pytest.raises(TypeError, match=f"{option} must be a number, got the string '1'"):
        fg.GateConfig(**{option: "1"})  # type: ignore[arg-type]


@pytest.mark.parametrize("price", ["product", "attention", "rest", "gather_call"])
def test_a_price_that_is_not_a_number_is_refused_by_name(price: str, tmp_path: Path) -> None:
    for value in ("1", True, torch.float64):
        with pytest.raises(TypeError, match=f"{price} must be a number, got "):
            fg.CostModel(**{price: value})  # type: ignore[arg-type]
    file = tmp_path / "cost.json"
    file.write_text(json.dumps({**fg.CostModel().as_dict(), price: "1"}))
    with pytest.raises(ValueError, match=f"json is not a cost model: {price} must be a number"):
        fg.CostModel.load(file)
    least = "at least 0" if price in ("rest", "gather_call") else "positive"
    with pytest.raises(ValueError, match=f"{price} must be {least} and finite, got -1"):
        fg.CostModel(**{price: -1.0})  # type: ignore[arg-type]


def test_a_saved_gated_model_keeps_its_cost_model(tmp_path: Path) -> None:
    model = fg.attach(tiny.tiny_model("bert"), config(target_time=0.6))
    tiny.scatter_gates(model)
    fg.save(model, tmp_path / "gated")
    loaded = fg.load(tmp_path / "gated")
    assert loaded.finegates_config == model.finegates_config
    assert loaded.finegates_config.cost == PLANTED
    assert budget_of(loaded).realised() == budget_of(model).realised()


def test_a_compact_model_gets_a_time_budget() -> None:
    model = fg.attach(tiny.tiny_model("bert"), config())
    tiny.scatter_gates(model)
    small = fg.compact(model.eval(), cost=PLANTED)
    before = seconds(small)
    again = fg.attach(small, config(target_time=0.7))
    # The gates of a compact model know what is gone; sides that stayed dense hold zeros.
    assert budget_of(again).dense == pytest.approx(before, rel=1e-9)
