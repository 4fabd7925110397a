"""Counted multiply-accumulates are those that torch counts in the layers of a forward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from finegates.adapters import adapter_for
from finegates.budget import macs
from finegates.compaction import compact
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.penalty import penalty_of
from support import tiny
from support.described import described_inputs, described_model
from support.described_types import (
    CONFIGURATIONS,
    IMAGES,
    SEQUENCES,
    TOWERS,
    WAVES,
)

# Not counted: scores of relative positions, routers, and recurrences of linear attention.
_OTHERS = {"deberta", "deberta-v2", "deepseek_v3", "gpt_oss", "mixtral", "qwen3_5_text"}
_OTHERS |= {"qwen3_moe", "trocr", "audio-spectrogram-transformer"}
TEXT = [
    name
    for name in sorted(CONFIGURATIONS)
    if name.partition("/")[0] not in _OTHERS | IMAGES | SEQUENCES | TOWERS | WAVES
]


@torch.no_grad()
def counted(model: nn.Module, inputs: dict[str, torch.Tensor]) -> int:
    """Multiply-accumulates in the described layers, counted by torch."""
    layers = {block.path for block in adapter_for(model).blocks(model)}
    with FlopCounterMode(display=False, depth=30) as counter:
        model(**inputs)
    total = 0
    for name, counts in counter.flop_counts.items():
        if name.partition(".")[2] in layers:
            total += sum(counts.values())
    return total // 2


@pytest.mark.sampled(12)
@pytest.mark.parametrize("name", TEXT)
def test_macs_of_dense_and_compact_models_are_those_that_torch_counts(name: str) -> None:
    model = described_model(name, attention="eager", dtype=torch.float32)
    inputs = described_inputs(name)
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    assert macs(model, 3, 9).total == counted(model, inputs)
    attach(model, GateConfig(sequence_length=9))
    tiny.scatter_gates(model, mean=0.7)
    small = compact(model.eval())
    assert macs(small, 3, 9).total == counted(small, inputs)


@pytest.mark.parametrize(("layers", "groups"), [(2, 1), (5, 2), (4, 3)])
def test_layers_that_share_weights_count_as_often_as_they_are_used(
    layers: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"num_hidden_layers": layers, "num_hidden_groups": groups}
    monkeypatch.setitem(CONFIGURATIONS, "albert", {**CONFIGURATIONS["albert"], **shared})
    model = described_model("albert", attention="eager", dtype=torch.float32)
    inputs = described_inputs("albert")
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    dense = counted(model, inputs)
    assert macs(model, 3, 9).total == dense
    attach(model, GateConfig(target=0.3, sequence_length=9))
    penalty = penalty_of(model, model.finegates_config)
    penalty.progress = 1.0
    generator = torch.Generator().manual_seed(0)
    for gate in penalty.gates():
        gate.importance.copy_(torch.rand(gate.size, generator=generator))
    kept = penalty.close_least()
    small = compact(model.eval())
    assert macs(small, 3, 9).total == counted(small, inputs)
    assert counted(small, inputs) / dense == pytest.approx(kept, abs=1e-6)
