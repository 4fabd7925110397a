"""GGUF files of Llama models, in the layout of llama.cpp, written with the package ``gguf``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
from torch import Tensor

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
_ENDS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys in GGUF's order: the two members of a rotated pair are adjacent."""
    rows, columns = weight.shape
    half = rows // heads // 2
    return weight.view(heads, 2, half, columns).transpose(1, 2).reshape(rows, columns)


def write_gguf(
    path: Path,
    model: Any,
    *,
    tokens: Sequence[str] = (),
    merges: Sequence[str] = (),
    kinds: Mapping[str, Any] | None = None,
) -> None:
    """Writes a Llama with float32 weights and heads of any number.

    Args:
        path: of the file.
        model: a ``LlamaForCausalLM``.
        tokens: of a byte-pair tokenizer, ``<unk>``, ``<s>`` and ``</s>`` first; none without.
        merges: of that tokenizer.
        kinds: quantisation by the last part of a layer's name in GGUF; others stay float32.
    """
    config, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if tokens:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(tokens)
        writer.add_token_merges(merges)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
    named = dict(_ENDS)
    for layer in range(config.num_hidden_layers):
        named |= {f"blk.{layer}.{a}": f"model.layers.{layer}.{b}" for a, b in LAYER.items()}
    for name, place in named.items():
        weight, last = weights[f"{place}.weight"], name.rpartition(".")[2]
        if last in ("attn_q", "attn_k"):
            weight = interleaved(weight, len(weight) // config.head_dim)
        kind = (kinds or {}).get(last, gguf.GGMLQuantizationType.F32)
        content = gguf.quants.quantize(weight.numpy(), kind)
        writer.add_tensor(f"{name}.weight", content, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
