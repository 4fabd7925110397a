"""Qwen3: Llama's layers, with norms over the dimensions of queries and keys."""

from __future__ import annotations

from finegates.adapters.llama import LlamaAdapter


class Qwen3Adapter(LlamaAdapter):
    """As :class:`LlamaAdapter`; score dimensions are kept, because norms read all."""

    model_types = ("qwen3",)
    qk_norm = True
