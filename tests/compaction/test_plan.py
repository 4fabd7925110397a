"""The plan of a compaction: kept dimensions block by block, the reasons, and the costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from finegates.budget import macs, planned_macs
from finegates.compaction import CostModel, compact, plan_compaction
from finegates.compaction.predicted_time import predicted_time
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from support import tiny

ARCHITECTURES = sorted(tiny.ARCHITECTURES)
# Moving data is so cheap here that every closed side is removed.
CHEAP = CostModel(product=1e-9, gather=1e-12, scatter=1e-12, head_multiple=1)
# Each kind of work has a price, as after the measurement of a model.
WHOLE = replace(
    CHEAP,
    output=3e-10,
    input=2e-10,
    layer=1e-9,
    attention=2e-9,
    score=5e-10,
    activation=7e-10,
    rest=1e-7,
    length=tiny.LENGTH,
)


def shared(architecture: str) -> nn.Module:
    model = attach(tiny.tiny_model(architecture), GateConfig(preset="structured"))
    tiny.scatter_gates(model)
    return model.eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_blocks_add_up_to_what_the_model_costs_before_and_after(architecture: str) -> None:
    model = shared(architecture)
    blocks = plan_compaction(model).blocks
    batch, length = 3, 7
    for side, counted in ((0, macs(model, batch, length)), (1, planned_macs(model, batch, length))):
        linear = sum(block.macs[side] for block in blocks)
        attention = sum(block.attention_macs[side] for block in blocks)
        assert batch * length * linear == counted.linear
        assert batch * length**2 * attention == counted.attention
    assert planned_macs(model, batch, length) == macs(compact(model), batch, length)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_layer_stands_under_its_block_with_why(architecture: str) -> None:
    plan = plan_compaction(shared(architecture))
    lines = str(plan).splitlines()
    assert lines[0].startswith(f"{len(plan.blocks)} blocks: ")
    assert "MACs a token (" in lines[0]
    for block in plan.blocks:
        start = lines.index(str(block))
        below = lines[start + 1 : start + 1 + len(block.layers)]
        assert below == [f"  {plan.layers[path]}" for path in block.layers]
    assert sum(len(block.layers) for block in plan.blocks) == len(plan.layers)
    assert "closed" in str(plan)


def test_the_times_of_a_block_are_those_of_its_layers() -> None:
    plan = plan_compaction(shared("roberta"), cost=CHEAP)
    for block in plan.blocks:
        assert block.seconds == sum(plan.layers[path].seconds for path in block.layers)
        assert f"{1e6 * block.seconds:.2f} us" in str(block)
    assert all(block.seconds is None for block in plan_compaction(shared("roberta")).blocks)


def test_what_becomes_one_product_gathers_its_inputs_once_and_scatters_as_one() -> None:
    plan = plan_compaction(shared("roberta"), cost=CHEAP)
    path = plan.blocks[0].attentions[0]
    assert plan.heads[path].fused
    trio = [plan.layers[f"{path}.{name}"] for name in ("query", "key", "value")]
    assert trio[0].cols is not None
    for layer, gathers in zip(trio, (True, False, False), strict=True):
        scatters = any(each.write is not None for each in trio)
        assert layer.seconds == CHEAP.seconds(
            layer.kept_out,
            layer.kept_in,
            gathers=gathers,
            scatters_to=layer.output_width if scatters else None,
        )


def test_a_model_that_no_adapter_describes_has_no_blocks_and_the_plan_says_so() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2))
    attach(model, GateConfig(modules=("*",), train_head=False))
    with torch.no_grad():
        model[0].rows.latent[0] = -3.0  # type: ignore[union-attr, index]
    plan = plan_compaction(model.eval())
    assert plan.blocks == ()
    text = str(plan)
    assert text.splitlines()[0].startswith("0: 3x4 -> 2x4, 8 MACs a token; 1 closed rows")
    assert "layer by layer only" in text


@pytest.mark.sampled
@pytest.mark.parametrize("preset", ["reference", "structured"])
@pytest.mark.parametrize("variant", tiny.VARIANTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_line_counts_the_parameters_that_the_two_models_have(
    architecture: str, variant: str, preset: str
) -> None:
    dense = tiny.tiny_model(architecture, variant)
    expected = sum(p.numel() for p in dense.parameters())
    model = attach(dense, GateConfig(preset=preset))
    tiny.scatter_gates(model)
    plan = plan_compaction(model.eval())
    found = sum(p.numel() for p in compact(model).parameters())
    assert found < expected
    assert plan.parameters == (expected, found)
    assert str(plan).splitlines()[-1] == plan.summary()
    assert plan.summary().startswith(f"{expected:,} -> {found:,} parameters (")


def test_the_last_line_predicts_the_time_before_and_after() -> None:
    model = shared("roberta")
    plan = plan_compaction(model, cost=CHEAP)
    dense = sum(CHEAP.product * p.out_features * p.in_features for p in plan.layers.values())
    after = sum(p.seconds for p in plan.layers.values())
    assert after < dense
    assert plan.summary().endswith(
        f"; {1e6 * dense:.2f} -> {1e6 * after:.2f} us a token predicted in linear layers"
    )
    assert "us" not in plan_compaction(model).summary()
    assert plan_compaction(compact(model), cost=CHEAP).times is None, "no layer is planned"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_with_costs_of_a_length_the_times_are_those_of_the_whole_models(
    architecture: str,
) -> None:
    dense = tiny.tiny_model(architecture)
    before = predicted_time(dense, WHOLE, tiny.LENGTH)
    model = attach(dense, GateConfig())
    tiny.scatter_gates(model)
    plan = plan_compaction(model.eval(), cost=WHOLE)
    after = predicted_time(compact(model, cost=WHOLE), WHOLE, tiny.LENGTH)
    assert plan.times is not None
    assert plan.times.length == tiny.LENGTH
    assert plan.times.dense == pytest.approx(before, rel=1e-12)
    assert plan.times.kept == pytest.approx(after, rel=1e-12)
    inside = sum(block.seconds for block in plan.blocks if block.seconds is not None)
    assert after - inside == pytest.approx(WHOLE.rest, rel=1e-9)
    assert plan.summary().endswith(
        f"; {1e6 * before:.2f} -> {1e6 * after:.2f} us a token predicted in sequences of "
        f"{tiny.LENGTH} tokens"
    )


class Tied(nn.Module):
    """Layers of which some have one weight: with each other, and with the embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 9)
        self.a, self.b, self.c = (nn.Linear(9, 9) for _ in range(3))
        self.head = nn.Linear(9, 9, bias=False)
        self.a.weight = self.b.weight = self.c.weight
        self.head.weight = self.words.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.c(self.b(self.a(self.words(ids)))))


@pytest.mark.parametrize(
    "gated",
    [("a",), ("a", "b"), ("a", "b", "c"), ("head",), ("b", "head"), ("a", "b", "c", "head")],
)
def test_a_weight_that_layers_share_is_counted_as_often_as_it_is_stored(
    gated: tuple[str, ...],
) -> None:
    dense = Tied()
    before = sum(p.numel() for p in dense.parameters())
    model = attach(dense, GateConfig(preset="reference", modules=gated))
    tiny.scatter_gates(model, 1)
    plan = plan_compaction(model)
    assert plan.parameters == (before, sum(p.numel() for p in compact(model).parameters()))
