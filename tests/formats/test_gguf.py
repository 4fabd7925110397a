"""A pruned Llama in its stock form can be served from a GGUF file.

The file is written with the package ``gguf`` in the layout of llama.cpp and read by transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import finegates as fg
from support import tiny

gguf = pytest.importorskip("gguf")

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def paired(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in llama.cpp's order: the two dimensions of a rotated pair next to each other."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def write(model: Any, file: Path) -> None:
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for name, tensor in model.state_dict().items():
        values, stem = tensor.numpy(), name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            _, _, index, inner = stem.split(".", 3)
            if inner in ("self_attn.q_proj", "self_attn.k_proj"):
                values = paired(values, len(values) // config.head_dim)
            target = f"blk.{index}.{NAMES[inner]}.weight"
        else:
            ends = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}
            target = f"{ends.get(stem, 'output')}.weight"
        writer.add_tensor(target, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("uniform", [True, False])
def test_a_pruned_llama_comes_back_from_a_gguf_file(uniform: bool, tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 8}
    model = tiny.tiny_model(
        "llama", "language", dtype=torch.float32, num_key_value_heads=4, head_dim=8, **sizes
    )
    fg.prune(model, criterion="magnitude", target=0.4, uniform=uniform, dimensions="inner")
    small = fg.compact(model)
    stock: Any = fg.uniform(small)
    cost = fg.uniform_cost(small)
    assert cost.compact < cost.dense
    assert not uniform or (cost.uniform == cost.compact and stock.config.num_attention_heads < 8)
    write(stock, tmp_path / "small.gguf")
    again = LlamaForCausalLM.from_pretrained(
        tmp_path, gguf_file="small.gguf", dtype=torch.float32
    ).eval()
    assert again.config.num_attention_heads == stock.config.num_attention_heads
    found, expected = (tiny.output(m, tiny.tokens()) for m in (again, small))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
