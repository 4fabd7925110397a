"""Uniform export: stock classes load compact models, as far as their configurations allow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from finegates.compaction import CompactLinear, compact
from finegates.formats.stock import NotUniformError, uniform
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from support import tiny
from support.tolerance import model_bound

ARCHITECTURES = sorted(tiny.ARCHITECTURES)


def gated_model(architecture: str, seed: int, variant: str = "language") -> nn.Module:
    model = attach(
        tiny.tiny_model(architecture, variant, seed=seed), GateConfig(preset="reference")
    )
    tiny.scatter_gates(model, seed)
    return model.eval()


def small_model(architecture: str, seed: int, variant: str = "language") -> nn.Module:
    return compact(gated_model(architecture, seed, variant))


def some_numbers(model: nn.Module) -> torch.Tensor:
    numbers = tiny.output(model, tiny.tokens()).flatten()
    return numbers[:: max(1, numbers.numel() // 6)]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_stock_class_loads_it_and_computes_the_same(
    architecture: str, seed: int, tmp_path: Path
) -> None:
    gated = gated_model(architecture, seed)
    uniform(compact(gated)).save_pretrained(tmp_path)  # type: ignore[operator]
    stock = type(gated).from_pretrained(tmp_path, dtype=torch.float64)  # type: ignore[attr-defined]
    assert not [m for m in stock.modules() if isinstance(m, CompactLinear)]
    # Its sums are the compact model's with more zeros, which do not round.
    bound = model_bound(gated, some_numbers)
    assert ((some_numbers(stock.eval()) - some_numbers(gated)).abs() <= bound).all()
    assert float(bound.max()) < 1e-9
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


def test_heads_are_filled_up_to_a_number_that_the_configuration_admits(tmp_path: Path) -> None:
    """Four heads at width 16: transformers 5 refuses a Llama of this width with three heads."""
    dense = tiny.tiny_model("llama", "language", hidden_size=16, num_key_value_heads=4)
    model = attach(dense, GateConfig(preset="structured"))
    for part in model.finegates_structure:  # type: ignore[union-attr]
        if hasattr(part, "heads"):
            part.heads.latent.data[:] = torch.tensor([1.0, -1.0, 1.0, 1.0])
    uniform(compact(model.eval())).save_pretrained(tmp_path)  # type: ignore[operator]
    stock = type(dense).from_pretrained(tmp_path, dtype=torch.float64)  # type: ignore[attr-defined]
    assert torch.allclose(
        tiny.output(stock.eval(), tiny.tokens()), tiny.output(model, tiny.tokens())
    )


def test_generation_works_on_the_stock_model(tmp_path: Path) -> None:
    small = small_model("llama", 3)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    prompt = tiny.tokens(length=4)["input_ids"]
    expected = small.generate(prompt, **settings)  # type: ignore[operator]
    assert torch.equal(uniform(small).generate(prompt, **settings), expected)  # type: ignore[operator]


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_settings_of_generation_come_along(architecture: str, tmp_path: Path) -> None:
    small = small_model(architecture, 3)
    prompt = tiny.tokens(1, 4)["input_ids"]

    def generated(model: nn.Module) -> torch.Tensor:
        torch.manual_seed(0)
        found: torch.Tensor = model.generate(prompt)  # type: ignore[operator]
        return found

    by_configuration = generated(uniform(small))
    small.generation_config.update(  # type: ignore[union-attr, operator]
        eos_token_id=[38, 39], max_new_tokens=5, do_sample=True, temperature=0.8, top_k=9
    )
    expected = generated(small)
    assert expected.shape != by_configuration.shape, "settings matter here"
    stock = uniform(small)
    assert torch.equal(generated(stock), expected)
    assert stock.generation_config is not small.generation_config
    stock.save_pretrained(tmp_path)  # type: ignore[operator]
    again = type(small).from_pretrained(tmp_path, dtype=torch.float64)  # type: ignore[attr-defined]
    assert again.generation_config.eos_token_id == [38, 39]
    assert torch.equal(generated(again.eval()), expected)


def test_weights_that_the_stock_model_would_not_get_are_refused_by_name() -> None:
    small = small_model("bert", 0, "classifier")
    small.classifier = nn.Linear(12, 5).double()  # the configuration has two labels
    with pytest.raises(ValueError, match=r"classifier\.weight: .*\(2, 12\), .* has shape \(5, 12"):
        uniform(small)
    small.classifier = nn.Sequential(nn.Linear(12, 2)).double()
    with pytest.raises(ValueError, match=r"classifier\.weight: .* has none of that name"):
        uniform(small)


def test_weights_kept_in_float32_stay_in_float32(tmp_path: Path) -> None:
    model = tiny.tiny_model("t5-gated", "language", dtype=torch.float16)
    for name, module in model.named_modules():
        if name.endswith(".wo"):  # as transformers loads T5 in half precision
            module.float()
    model = attach(model, GateConfig(preset="reference"))
    tiny.scatter_gates(model)
    small = compact(model.eval())
    stock = uniform(small)
    dtypes = {name: p.dtype for name, p in stock.named_parameters()}
    wide = {name for name, dtype in dtypes.items() if dtype == torch.float32}
    assert wide == {name for name in dtypes if name.endswith(".wo.weight")}
    assert set(dtypes.values()) == {torch.float16, torch.float32}
    for name in wide:
        assert not torch.equal(stock.state_dict()[name].half().float(), stock.state_dict()[name])
    found, expected = (tiny.output(m, tiny.tokens()) for m in (stock, small))
    assert torch.allclose(found, expected, rtol=0, atol=1e-2)
    stock.save_pretrained(tmp_path)  # type: ignore[operator]
    again = type(small).from_pretrained(tmp_path, dtype=torch.float16)  # type: ignore[attr-defined]
    assert {name: p.dtype for name, p in again.named_parameters()} == dtypes


def test_angles_of_rotary_embeddings_keep_their_precision() -> None:
    small = small_model("llama", 0)
    for parameter in small.parameters():  # as transformers loads it in half precision
        parameter.data = parameter.data.to(torch.bfloat16)
    angles = {name: buffer for name, buffer in small.named_buffers() if "inv_freq" in name}
    assert {buffer.dtype for buffer in angles.values()} == {torch.float64}
    stock = uniform(small)
    assert {p.dtype for p in stock.parameters()} == {torch.bfloat16}
    for name, buffer in angles.items():
        assert torch.equal(stock.get_buffer(name), buffer)


def test_a_bias_that_the_architecture_lacks_is_refused_with_its_place() -> None:
    model = attach(tiny.tiny_model("t5", dense_act_fn="sigmoid"), GateConfig(preset="reference"))
    tiny.scatter_gates(model)
    with pytest.raises(NotUniformError, match=r"wo needs a bias"):
        uniform(compact(model.eval()))


def test_a_model_with_gates_is_refused() -> None:
    with pytest.raises(ValueError, match="compact it first"):
        uniform(attach(tiny.tiny_model("bert"), GateConfig(preset="reference")))
