"""Architectures whose layers equal, or nearly equal, those in the conformance suites."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    DistilBertConfig,
    ElectraConfig,
    PretrainedConfig,
    XLMRobertaConfig,
)

from finegates.adapters import adapter_for
from finegates.compaction import compact
from finegates.formats.compact import load, save
from finegates.gates.attachment import attach, attach_fixed
from finegates.gates.config import GateConfig
from finegates.modules.linear import linear_shape
from support import tiny
from support.tolerance import model_bound

_SIZES = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}
CONFIGURATIONS: dict[str, PretrainedConfig] = {
    "distilbert": DistilBertConfig(
        vocab_size=tiny.VOCABULARY,
        dim=12,
        n_layers=2,
        n_heads=3,
        hidden_dim=20,
        max_position_embeddings=16,
    ),
    "electra": ElectraConfig(**_SIZES, embedding_size=8),
    "xlm-roberta": XLMRobertaConfig(**_SIZES),
}
pytestmark = pytest.mark.parametrize("model_type", CONFIGURATIONS)


def test_a_closed_head_goes_and_equal_inputs_share_one_product(model_type: str) -> None:
    base = random_model(model_type, AutoModelForSequenceClassification)
    part = adapter_for(base).blocks(base)[0].attentions[0]
    gates = {
        path: (torch.ones(outputs), torch.ones(columns))
        for path in part.linears()
        for columns, outputs in [linear_shape(base.get_submodule(path))]
    }
    gates[part.v][0][: part.head_dim] = 0
    gates[part.q][0][part.head_dim] = 0  # the first dimension of the second head
    model = attach_fixed(base, gates).eval()
    small = compact(model)
    narrow = small.get_submodule(part.path)
    assert narrow.finegates_heads.heads == (1, 2)
    assert hasattr(narrow, "qkv")
    bound = model_bound(model, some_numbers)
    assert ((some_numbers(small) - some_numbers(model)).abs() <= bound).all()


def random_model(model_type: str, auto_class: type) -> nn.Module:
    model: nn.Module = auto_class.from_config(CONFIGURATIONS[model_type])  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model.to(torch.float64).eval()


def some_numbers(model: nn.Module) -> torch.Tensor:
    numbers = tiny.output(model, tiny.tokens()).flatten()
    return numbers[:: max(1, numbers.numel() // 6)]


@pytest.mark.parametrize("preset", ["reference", "structured"])
@pytest.mark.parametrize("head", [AutoModelForSequenceClassification, AutoModelForMaskedLM])
def test_the_compact_model_equals_the_gated_one_and_reloads(
    model_type: str, head: type, preset: str, tmp_path: Path
) -> None:
    base = random_model(model_type, head)
    model = attach(base, GateConfig(preset=preset, sequence_length=7))
    tiny.scatter_gates(model)
    small = compact(model.eval())
    bound = model_bound(model, some_numbers)
    assert float(bound.max()) < 1e-9
    assert ((some_numbers(small) - some_numbers(model)).abs() <= bound).all()
    assert any(hasattr(module, "finegates_heads") for module in small.modules()), "narrow heads"
    save(small, tmp_path / "small")
    again = load(tmp_path / "small")
    assert torch.equal(tiny.output(again, tiny.tokens()), tiny.output(small, tiny.tokens()))
