"""Uniform export: stock classes load what compaction made, as far as their configurations go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny
from finegates.attachment import GateConfig, attach
from finegates.compaction import CompactLinear, compact
from finegates.stock import NotUniformError, uniform

ARCHITECTURES = sorted(tiny.ARCHITECTURES)


def small_model(architecture: str, seed: int, variant: str = "language") -> torch.nn.Module:
    model = attach(tiny.tiny_model(architecture, variant, seed=seed), GateConfig())
    tiny.scatter_gates(model, seed)
    return compact(model.eval())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_stock_class_loads_it_and_computes_the_same(
    architecture: str, seed: int, tmp_path: Path
) -> None:
    small = small_model(architecture, seed)
    uniform(small).save_pretrained(tmp_path)  # type: ignore[operator]
    stock = type(small).from_pretrained(tmp_path, dtype=torch.float64)  # type: ignore[attr-defined]
    assert not [m for m in stock.modules() if isinstance(m, CompactLinear)]
    found, expected = (tiny.output(m.eval(), tiny.tokens()) for m in (stock, small))
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
    dense = sum(p.numel() for p in tiny.tiny_model(architecture, "language").parameters())
    assert sum(p.numel() for p in stock.parameters()) < dense


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_decoders_lose_whole_heads_in_the_configuration_too(architecture: str) -> None:
    model = attach(tiny.tiny_model(architecture, "language"), GateConfig(preset="structured"))
    for part in model.finegates_structure:  # type: ignore[union-attr]
        if hasattr(part, "heads"):
            part.heads.latent.data[:] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    stock = uniform(compact(model.eval()))
    assert stock.config.num_attention_heads == 2
    assert stock.config.num_key_value_heads == 2
    assert torch.allclose(tiny.output(stock, tiny.tokens()), tiny.output(model, tiny.tokens()))


def test_generation_works_on_the_stock_model(tmp_path: Path) -> None:
    small = small_model("llama", 3)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    prompt = tiny.tokens(length=4)["input_ids"]
    expected = small.generate(prompt, **settings)  # type: ignore[operator]
    assert torch.equal(uniform(small).generate(prompt, **settings), expected)  # type: ignore[operator]


def test_a_bias_that_the_architecture_lacks_is_refused_with_its_place() -> None:
    model = attach(tiny.tiny_model("t5", dense_act_fn="sigmoid"), GateConfig())
    tiny.scatter_gates(model)
    with pytest.raises(NotUniformError, match=r"wo needs a bias"):
        uniform(compact(model.eval()))


def test_a_model_with_gates_is_refused() -> None:
    with pytest.raises(ValueError, match="compact it first"):
        uniform(attach(tiny.tiny_model("bert"), GateConfig()))
