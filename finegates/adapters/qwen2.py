"""Qwen2: Llama's layers, with biases on queries, keys and values."""

from __future__ import annotations

from finegates.adapters.llama import LlamaAdapter


class Qwen2Adapter(LlamaAdapter):
    """As :class:`LlamaAdapter`."""

    model_types = ("qwen2",)
