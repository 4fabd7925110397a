"""Cost model: a side is removed only if that pays, and outputs do not change."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from finegates.compaction import CostModel, calibrate, compact, plan_compaction
from finegates.compaction.draft import Draft
from finegates.compaction.sides import choose_sides
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.gate import FixedGate
from finegates.gates.gated_linear import GatedLinear
from support import tiny
from support.tolerance import linear_bound, model_bound

FREE = CostModel(product=1.0, gather=1e-9, scatter=1e-9, head_multiple=1)
DEAR = CostModel(product=1e-9, gather=1.0, scatter=1.0, head_multiple=3)


def draft(rows: int, cols: int, closed_rows: int, closed_cols: int) -> Draft:
    made = Draft("layer", torch.ones(rows, dtype=torch.bool), torch.ones(cols, dtype=torch.bool))
    made.rows[:closed_rows] = False
    made.cols[:closed_cols] = False
    return made


@pytest.mark.parametrize("closed", list(itertools.product([0, 1, 40, 100], repeat=2)))
def test_the_choice_is_the_cheapest_of_all(closed: tuple[int, int]) -> None:
    cost = CostModel()
    chosen = draft(100, 100, *closed)
    choose_sides([chosen], cost)
    prices = {}
    for gathers, scatters in itertools.product([False, True], repeat=2):
        rows = 100 - closed[0] if scatters else 100
        cols = 100 - closed[1] if gathers else 100
        prices[rows, cols] = cost.seconds(
            rows, cols, gathers=gathers, scatters_to=100 if scatters else None
        )
    assert chosen.seconds(cost) <= min(prices.values()) + 1e-18


def test_where_moving_is_free_all_goes_and_where_it_is_dear_nothing() -> None:
    for cost, kept in ((FREE, (7, 5)), (DEAR, (9, 9))):
        chosen = draft(9, 9, 2, 4)
        choose_sides([chosen], cost)
        assert (int(chosen.rows.sum()), int(chosen.cols.sum())) == kept


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2", "t5"])
@pytest.mark.parametrize("multiple", [1, 2, 3, 4, 64])
def test_heads_get_the_next_multiple_and_compute_the_same(architecture: str, multiple: int) -> None:
    model = attach(tiny.tiny_model(architecture), GateConfig(preset="reference"))
    tiny.scatter_gates(model, mean=-0.7)
    model.eval()

    def logits(m: nn.Module) -> torch.Tensor:
        return tiny.output(m, tiny.tokens())

    smallest = plan_compaction(model).heads
    cost = replace(FREE, head_multiple=multiple)
    rounded = plan_compaction(model, cost=cost).heads
    assert smallest
    even = 2 if architecture == "llama" else 1  # rotated dimensions come in pairs
    for path, sizes in smallest.items():
        width = -(-sizes.width // multiple) * multiple
        width = min(width + width % even, sizes.head_dim)
        if width < sizes.head_dim:
            assert rounded[path].width == width
        else:
            assert path not in rounded or rounded[path].width == width
    small = compact(model, cost=cost)
    assert ((logits(small) - logits(model)).abs() <= model_bound(model, logits)).all()


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("cost", [FREE, DEAR, CostModel()], ids=["free", "dear", "default"])
@pytest.mark.parametrize("preset", ["reference", "structured"])
def test_outputs_do_not_depend_on_prices(architecture: str, cost: CostModel, preset: str) -> None:
    model = attach(tiny.tiny_model(architecture), GateConfig(preset=preset))
    tiny.scatter_gates(model)
    model.eval()

    def logits(m: nn.Module) -> torch.Tensor:
        return tiny.output(m, tiny.tokens())

    small = compact(model, cost=cost)
    assert ((logits(small) - logits(model)).abs() <= model_bound(model, logits)).all()


def test_the_plan_predicts_the_time_of_every_layer_and_says_what_stays_dense() -> None:
    model = attach(tiny.tiny_model("bert"), GateConfig(preset="reference"))
    tiny.scatter_gates(model)
    plan = plan_compaction(model.eval(), cost=DEAR)
    assert all(layer.seconds > 0 for layer in plan.layers.values())
    assert "gathering would not pay" in str(plan)
    assert " us; " in str(plan)
    assert "MACs a token" in str(plan)
    assert all(layer.seconds is None for layer in plan_compaction(model).layers.values())


def test_a_dense_side_holds_zeros() -> None:
    rows, cols = FixedGate(torch.tensor([1.0, 0.0])), FixedGate(torch.tensor([0.0, 0.5, 1.0]))
    gated = GatedLinear(nn.Linear(3, 2), rows, cols)
    small = compact(gated, cost=DEAR)
    assert small.weight.shape == (2, 3)
    assert not small.weight[1].any()
    assert not small.weight[:, 0].any()
    x = torch.randn(4, 3)
    assert ((small(x) - gated(x)).abs() <= linear_bound(gated, x)).all()


def test_calibration_gives_positive_prices_that_survive_a_file(tmp_path: Path) -> None:
    measured = calibrate(width=32, tokens=16, repeats=3)
    changes = ({}, {"onednn_from": None}, {"onednn_from": 16}, {"head_multiple": 3})
    for cost in (replace(measured, **change) for change in changes):
        cost.save(tmp_path / "cost.json")
        assert CostModel.load(tmp_path / "cost.json") == cost
    good = json.loads((tmp_path / "cost.json").read_text())
    wrong = {"onednn_from": (0, "4", 1.5), "head_multiple": (0, None), "product": (0, "x")}
    bad = [json.dumps({**good, name: v}) for name, values in wrong.items() for v in values]
    for text in ("[]", "{", "{}", json.dumps({**good, "prodcut": 1}), *bad):
        (tmp_path / "cost.json").write_text(text)
        with pytest.raises(ValueError, match=r"cost.json is not a cost model"):
            CostModel.load(tmp_path / "cost.json")
