"""Mistral: Llama's layers, with a sliding window."""

from __future__ import annotations

from finegates.adapters.llama import LlamaAdapter


class MistralAdapter(LlamaAdapter):
    """As :class:`LlamaAdapter`."""

    model_types = ("mistral",)
