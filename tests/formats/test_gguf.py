"""A pruned Llama in its stock form can be served from a GGUF file.

The file is written with the package ``gguf`` in the layout of llama.cpp and read by transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import finegates as fg
from support import tiny

gguf_files = pytest.importorskip("support.gguf_files", exc_type=ImportError)


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
    gguf_files.write_gguf(tmp_path / "small.gguf", stock)
    again = LlamaForCausalLM.from_pretrained(
        tmp_path, gguf_file="small.gguf", dtype=torch.float32
    ).eval()
    assert again.config.num_attention_heads == stock.config.num_attention_heads
    found, expected = (tiny.output(m, tiny.tokens()) for m in (again, small))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
