"""Compiling a compact model layer by layer gives one graph per layer, for any number of layers."""

import pytest
import torch
import torch._dynamo

from finegates.compaction import compact
from finegates.formats.compact import load, save
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from support.tiny import output, scatter_gates, tiny_model, tokens


@pytest.fixture(autouse=True)
def torchs_own_limits():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256):
        yield
    torch._dynamo.reset()


def small_model(layers=10):
    model = tiny_model("bert", dtype=torch.float32, num_hidden_layers=layers)
    attach(model, GateConfig(preset="reference"))
    scatter_gates(model)
    return compact(model)


@pytest.mark.thorough
@torch.no_grad()
@pytest.mark.parametrize("from_disk", [False, True])
def test_more_layers_than_torchs_limit_are_compiled_one_by_one(from_disk, tmp_path):
    small = small_model()
    if from_disk:
        save(small, tmp_path / "small")
        torch._dynamo.config.recompile_limit = 8
        small = load(tmp_path / "small")
    expected = output(small, tokens())
    for layer in small.bert.encoder.layer:
        layer.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(output(small, tokens()), expected)


def test_limits_are_never_lowered():
    torch._dynamo.config.recompile_limit = 5000
    small_model(2)
    assert torch._dynamo.config.recompile_limit == 5000
