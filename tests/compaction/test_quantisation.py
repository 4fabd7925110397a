"""Compact layers in int8: tools that quantise linear layers find the matmul inside."""

import warnings

import pytest
import torch
from torch import nn

from finegates.compaction import CompactLinear, compact
from finegates.formats.stock import uniform
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from support.tiny import output, scatter_gates, tiny_model, tokens

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def quantised(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def is_int8(module):
    return type(module).__module__.startswith("torch.ao.nn.quantized")


@torch.no_grad()
@pytest.mark.parametrize("preset", ["structured", "reference"])
@pytest.mark.parametrize("architecture", ["bert", "deberta-v2", "t5-gated", "llama", "gpt2"])
def test_every_product_of_a_compact_model_becomes_int8(architecture, preset):
    model = tiny_model(architecture, dtype=torch.float32)
    attach(model, GateConfig(preset=preset, sequence_length=7))
    scatter_gates(model)
    small = compact(model)
    fast = quantised(small)
    layers = [m for m in fast.modules() if isinstance(m, CompactLinear)]
    assert len(layers) > 4
    assert all(is_int8(layer.linear) for layer in layers)
    expected = output(small, tokens())
    error = (output(fast, tokens()) - expected).norm()
    stock = uniform(small)
    # The same function with the same values, rounded to int8 in the same way.
    usual = (output(quantised(stock), tokens()) - expected).norm()
    assert 0 < error < 4 * usual + 1e-3 * expected.norm()
    assert "CompactLinear" in repr(fast)


@torch.no_grad()
def test_an_int8_layer_computes_what_its_int8_product_does_between_gather_and_scatter():
    cols, rows = torch.tensor([0, 2, 3, 6]), torch.tensor([1, 2, 5, 7, 8])
    layer = CompactLinear(
        torch.randn(5, 4), torch.randn(5), in_features=7, out_features=9, cols=cols, rows=rows
    )
    plain = nn.Linear(4, 5)
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    x = torch.randn(2, 3, 7)
    expected = torch.zeros(2, 3, 9)
    expected[..., rows] = quantised(nn.Sequential(plain))(x[..., cols])
    assert torch.equal(quantised(nn.Sequential(layer))(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_layer_that_reads_nothing_gives_its_bias_alone(bias):
    layer = CompactLinear(
        torch.zeros(3, 0),
        torch.tensor([1.0, -2.0, 0.5]) if bias else None,
        in_features=4,
        out_features=5,
        cols=torch.tensor([], dtype=torch.int64),
        rows=torch.tensor([0, 2, 3]),
    )
    x = torch.randn(2, 4)
    assert torch.equal(quantised(nn.Sequential(layer))(x), layer(x))
    assert bool(layer(x).any()) == bias
