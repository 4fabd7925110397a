"""Gate and up projections with the same inputs are one matmul in a compact model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from finegates.adapters import adapter_for
from finegates.budget import macs, planned_macs
from finegates.compaction import CostModel, compact, plan_compaction
from finegates.formats.compact import load, save
from finegates.formats.stock import uniform
from finegates.formats.structure import CompactFormatError
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from support import tiny
from support.saved import edit

GATED = ["llama", "mistral", "qwen2", "qwen3", "t5-gated"]
PRICES = [
    None,
    CostModel(product=1e-9, gather=1e-12, scatter=1e-12, head_multiple=1),  # removal always pays
    CostModel(product=1e-12, gather=1e-9, scatter=1e-9, head_multiple=1),  # removal never pays
]


def shared(architecture: str, mean: float = 0.0) -> nn.Module:
    """A model with shared gates: gate and up read the same inputs."""
    model = attach(tiny.tiny_model(architecture), GateConfig(preset="structured"))
    tiny.scatter_gates(model, mean=mean)
    return model.eval()


def joined(model: nn.Module) -> list[str]:
    return [path for path, m in model.named_modules() if hasattr(m, "finegates_joined")]


@pytest.mark.parametrize("cost", PRICES, ids=["smallest", "cheap moves", "dear moves"])
@pytest.mark.parametrize("architecture", GATED)
def test_they_become_one_product_that_computes_the_same(
    architecture: str, cost: CostModel | None
) -> None:
    model = shared(architecture)
    plan, small = plan_compaction(model, cost=cost), compact(model, cost=cost)
    paths = joined(small)
    blocks = adapter_for(small).blocks(small)
    assert paths == [block.feed_forward.path for block in blocks if block.feed_forward]
    assert plan.joined == tuple(paths)
    assert f"  {paths[0]}: gate and up one product" in str(plan)
    expected, found = (tiny.output(m, tiny.tokens()) for m in (model, small))
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    if cost is None:
        assert macs(small, 2, 7) == planned_macs(model, 2, 7)


def test_they_gather_their_inputs_once() -> None:
    model = shared("llama")
    plan = plan_compaction(model, cost=PRICES[1])
    gate, up = (plan.layers[f"model.layers.0.mlp.{name}_proj"] for name in ("gate", "up"))
    assert gate.cols is not None
    for layer, gathers in ((gate, True), (up, False)):
        assert layer.seconds == PRICES[1].seconds(
            layer.kept_out, layer.kept_in, gathers=gathers, scatters_to=None
        )


def test_with_inputs_of_their_own_they_stay_two() -> None:
    model = attach(tiny.tiny_model("llama"), GateConfig(preset="reference"))
    tiny.scatter_gates(model)
    small = compact(model.eval())
    assert joined(small) == []
    assert hasattr(small.get_submodule("model.layers.0.mlp"), "gate_proj")


def test_with_everything_closed_nothing_is_left_of_them() -> None:
    model = shared("llama", mean=-9.0)
    small = compact(model)
    assert small.get_submodule("model.layers.0.mlp.gate_up").weight.shape[0] == 0
    expected, found = (tiny.output(m, tiny.tokens()) for m in (model, small))
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_compacting_again_changes_nothing() -> None:
    small = compact(shared("llama"))
    again = compact(small)
    assert joined(again) == joined(small)
    assert torch.equal(tiny.output(again, tiny.tokens()), tiny.output(small, tiny.tokens()))


@pytest.mark.parametrize("architecture", GATED)
def test_the_stock_model_has_two_again(architecture: str) -> None:
    small = compact(shared(architecture))
    stock = uniform(small)
    assert joined(stock) == []
    expected, found = (tiny.output(m, tiny.tokens()) for m in (small, stock))
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("architecture", GATED)
def test_a_saved_model_reloads(architecture: str, tmp_path: Path) -> None:
    small = compact(shared(architecture))
    save(small, tmp_path / "small")
    again = load(tmp_path / "small")
    assert joined(again) == joined(small)
    assert torch.equal(tiny.output(again, tiny.tokens()), tiny.output(small, tiny.tokens()))


def test_a_wrong_description_is_refused(tmp_path: Path) -> None:
    save(compact(shared("llama")), tmp_path / "small")
    attention = "model.layers.0.self_attn"
    for wrong, message in (
        ("model.layers.0.mlp", "'joined' is missing or not a list"),
        ([0], "'joined' is not a list of paths"),
        ([attention], f"{attention} is not a feed-forward part"),
        ([], "gate_up"),
    ):
        edit(tmp_path / "small", lambda s, wrong=wrong: s.update(joined=wrong))
        with pytest.raises(CompactFormatError, match=message):
            load(tmp_path / "small")
