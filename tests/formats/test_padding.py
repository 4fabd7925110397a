"""The padding of a uniform model is known and reported."""

import logging

import pytest
import torch

import finegates as fg
from finegates.compaction import compact
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.stochastic import StochasticGate
from support.tiny import scatter_gates, tiny_model

HIDDEN, WIDTH, LAYERS = 12, 20, 2
DENSE = LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * WIDTH)


@torch.no_grad()
def small_bert(*widths):
    """A compact BERT with the given feed-forward width in each layer."""
    model = tiny_model("bert", dtype=torch.float32)
    attach(model, GateConfig(preset="reference"))
    for module in model.modules():
        if isinstance(module, StochasticGate):
            module.latent.fill_(3.0)
    for layer, width in zip(model.bert.encoder.layer, widths, strict=True):
        layer.intermediate.dense.rows.latent[width:] = -3.0
        layer.output.dense.cols.latent[width:] = -3.0
    return compact(model.eval())


@pytest.mark.parametrize(("widths", "widest"), [((4, 18), 1), ((6, 5), 0), ((7, 7), 0)])
def test_the_cost_counts_the_weights_of_three_models(widths, widest):
    cost = fg.uniform_cost(small_bert(*widths))
    attention = LAYERS * 4 * HIDDEN * HIDDEN
    assert cost.dense == DENSE
    assert cost.compact == attention + 2 * HIDDEN * sum(widths)
    assert cost.uniform == attention + 2 * HIDDEN * LAYERS * max(widths)
    assert (cost.widest, cost.width, cost.dense_width) == (
        f"bert.encoder.layer.{widest}",
        max(widths),
        WIDTH,
    )
    removed, returned = DENSE - cost.compact, cost.uniform - cost.compact
    assert cost.returned == pytest.approx(returned / removed)


def test_nothing_comes_back_where_nothing_was_removed():
    dense = fg.uniform_cost(tiny_model("bert"))
    assert dense.dense == dense.compact == dense.uniform
    assert dense.returned == 0


@pytest.mark.parametrize("architecture", ["bert", "deberta-v2", "t5", "t5-gated", "llama", "gpt2"])
def test_the_cost_is_that_of_the_model_that_uniform_makes(architecture):
    model = tiny_model(architecture, "language", dtype=torch.float32)
    attach(model, GateConfig(preset="structured", sequence_length=7))
    scatter_gates(model)
    small = compact(model)
    cost = fg.uniform_cost(small)
    stock = fg.uniform_cost(fg.uniform(small))
    assert cost.uniform == stock.compact
    dense = fg.uniform_cost(tiny_model(architecture, "language"))
    assert cost.dense == dense.compact
    assert cost.compact < cost.uniform < cost.dense


@pytest.mark.parametrize(("widths", "level"), [((4, 18), logging.WARNING), ((6, 5), logging.INFO)])
def test_uniform_says_what_it_keeps_and_which_layer_is_the_widest(widths, level, caplog):
    with caplog.at_level(logging.INFO, "finegates.formats.padding"):
        fg.uniform(small_bert(*widths))
    (record,) = [r for r in caplog.records if r.name == "finegates.formats.padding"]
    assert record.levelno == level
    said = record.getMessage()
    attention = 4 * HIDDEN * HIDDEN * LAYERS
    kept, padded = (
        round(100 * (attention + 2 * HIDDEN * total) / DENSE)
        for total in (sum(widths), LAYERS * max(widths))
    )
    assert f"kept {kept} % of the MACs, {padded} % once uniform" in said
    index = widths.index(max(widths))
    assert f"bert.encoder.layer.{index} ({max(widths)} of {WIDTH}) is the widest" in said


def test_a_gated_model_has_no_uniform_cost():
    model = tiny_model("bert")
    attach(model, GateConfig(preset="reference"))
    with pytest.raises(ValueError, match="compact it first"):
        fg.uniform_cost(model)
