"""Weights of compact layers can be stored in int8 by torchao."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import finegates as fg
from finegates.compaction import CompactLinear
from support import tiny

torchao = pytest.importorskip("torchao.quantization")


@pytest.mark.parametrize("dimensions", ["all", "inner"])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_outputs_are_those_of_the_rounded_weights(architecture: str, dimensions: Any) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 96}
    model = tiny.tiny_model(architecture, dtype=torch.float32, num_attention_heads=4, **sizes)
    fg.attach(model, fg.GateConfig(dimensions=dimensions))
    tiny.scatter_gates(model)
    small, rounded = fg.compact(model), fg.compact(model)
    assert any(isinstance(layer, CompactLinear) for layer in small.modules())
    torchao.quantize_(small, torchao.Int8WeightOnlyConfig())
    with torch.no_grad():
        for layer, int8 in zip(rounded.modules(), small.modules(), strict=True):
            if isinstance(layer, nn.Linear):
                step = layer.weight.abs().amax(1, keepdim=True) / 127
                stored = int8.weight.dequantize()  # type: ignore[operator, union-attr]
                assert ((stored - layer.weight).abs() <= 0.51 * step).all()
                layer.weight.copy_(stored)
        found, expected = (tiny.output(m, tiny.tokens()) for m in (small, rounded))
    assert not torch.equal(found, tiny.output(fg.compact(model), tiny.tokens()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_quantised_model_is_not_saved(tmp_path: Path) -> None:
    model = tiny.tiny_model("bert", dtype=torch.float32)
    fg.attach(model, fg.GateConfig())
    tiny.scatter_gates(model)
    small = fg.compact(model)
    torchao.quantize_(small, torchao.Int8WeightOnlyConfig())
    with pytest.raises(ValueError, match="before it was quantised"):
        fg.save(small, tmp_path / "small")
    assert not (tmp_path / "small").exists()
