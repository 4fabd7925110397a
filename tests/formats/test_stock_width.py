"""Stock models of models that lost hidden dimensions: the configuration says the new size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import finegates as fg
from finegates.gates.gated_output import width_gate
from finegates.modules.narrow_stream import CountingLayerNorm
from support import described
from support.width import hard, on_kept, stochastic_gates, width_model

RMS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2")
FAST = ("llama", "qwen3", "gemma2")
NORMS = ("bert", "distilbert", "electra")


def narrower(name: str, head: str, kept: int) -> nn.Module:
    """A compact model with some hidden dimensions, whose other sizes are dense."""
    gated = hard(width_model(described.described_model(name, head)))
    for gate in stochastic_gates(gated):
        nn.init.ones_(gate.latent)
        if gate is width_gate(gated):
            nn.init.constant_(gate.latent[kept:], -1.0)
    return fg.compact(gated)


@pytest.mark.parametrize("head", ["base", "causal", "sequence"])
@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in RMS]
)
def test_the_configuration_says_the_hidden_size_and_from_pretrained_loads_it(
    tmp_path: Path, name: str, head: str
) -> None:
    small = narrower(name, head, 16)
    stock = fg.uniform(small)
    assert stock.config.hidden_size == 16  # type: ignore[union-attr]
    stock.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = type(stock).from_pretrained(tmp_path, dtype=torch.float64).eval()  # type: ignore[attr-defined]
    inputs = described.described_inputs(name, head)
    ours = described.described_outputs(small, inputs)
    for model in (stock, loaded):
        theirs = described.described_outputs(model, inputs)
        assert described.relative_difference(ours, theirs) < 1e-12


@pytest.mark.parametrize("kept", [13, 23])
def test_a_size_that_the_configuration_does_not_accept_is_padded_to_the_next(kept: int) -> None:
    small = narrower("llama", "causal", kept)
    stock = fg.uniform(small)
    width = stock.config.hidden_size  # type: ignore[union-attr]
    assert kept <= width <= 24
    inputs = described.described_inputs("llama", "causal")
    ours, theirs = (described.described_outputs(model, inputs) for model in (small, stock))
    assert described.relative_difference(ours, theirs) < 1e-12


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("head", ["base", "masked"])
def test_a_stream_with_layer_norms_is_padded_to_its_dense_size(name: str, head: str) -> None:
    small = narrower(name, head, 16)
    assert any(isinstance(module, CountingLayerNorm) for module in small.modules())
    stock = fg.uniform(small)
    assert not any(isinstance(module, CountingLayerNorm) for module in stock.modules())
    inputs = described.described_inputs(name, head)
    ours, theirs = (described.described_outputs(model, inputs) for model in (small, stock))
    theirs = on_kept(theirs, ours, torch.arange(16))
    assert described.relative_difference(ours, theirs) < 1e-12


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in RMS]
)
def test_layers_that_were_fused_are_separate_in_the_stock_model(
    tmp_path: Path, name: str, parts: bool
) -> None:
    model = described.described_model(name, "causal")
    options = {"criterion": "random", "target": 0.3, "dimensions": "inner", "width": True}
    fg.prune(model, sequence_length=9, parts=parts, progress=False, **options)  # type: ignore[arg-type]
    small = fg.compact(model)
    inputs = described.described_inputs(name, "causal")
    ours, theirs = (described.described_outputs(m, inputs) for m in (small, fg.uniform(small)))
    assert described.relative_difference(ours, theirs) < 1e-12
