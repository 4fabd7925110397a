"""Inputs of the cost model: device, shapes of hub models, text lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, PretrainedConfig


@dataclass(frozen=True)
class Device:
    """An accelerator.

    Attributes:
        name: the vendor's name.
        peak: dense operations per second by precision, from the vendor's data sheet.
        utilisation: fraction of the peak that training reaches; an assumption.
        memory: memory in bytes.
        launch_s: minimum time of one layer's forward pass, due to kernel launches; an assumption. A
            backward pass has twice as many launches.
    """

    name: str
    peak: dict[str, float]
    utilisation: float
    memory: float
    launch_s: float


DEVICE = Device(
    "NVIDIA A100 80 GB",
    {"float32": 19.5e12, "bfloat16": 312e12},
    utilisation=0.4,
    memory=80e9,
    launch_s=3e-4,
)

_LLAMA: dict[str, Any] = {"tie_word_embeddings": False}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "FacebookAI/roberta-base": ("roberta", {"vocab_size": 50265, "max_position_embeddings": 514}),
    "FacebookAI/roberta-large": (
        "roberta",
        {
            "vocab_size": 50265,
            "max_position_embeddings": 514,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    ),
    "meta-llama/Llama-3.2-1B": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "meta-llama/Llama-2-7b-hf": (
        "llama",
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "intermediate_size": 11008,
            **_LLAMA,
        },
    ),
}
"""Sizes in the configuration files of these models, by hub id: type and sizes."""

TOKENS = {
    "cola": 11.3, "sst2": 13.4, "mrpc": 53.2, "stsb": 27.8, "qqp": 30.7, "mnli": 40.0,
    "qnli": 49.3, "rte": 70.2,
}  # fmt: skip
"""Mean tokens of a training example, first 10,000 rows, by the tokenizer of all-MiniLM-L6-v2."""

VALIDATION_ROWS = {
    "cola": 1043, "sst2": 872, "mrpc": 408, "stsb": 1500, "qqp": 40430, "mnli": 9815,
    "qnli": 5463, "rte": 277,
}  # fmt: skip
"""Official sizes of the reported splits."""

VOCABULARY = {"google-t5/t5-base": 32100}
"""Vocabulary sizes of tokenizers of pretrained models."""

DOCUMENT_TOKENS = 500
"""Mean tokens of a held-out document of C4; an assumption."""


def shape_of(hub: str) -> PretrainedConfig:
    """The configuration of a hub model. Raises KeyError for unknown ones."""
    model_type, sizes = SHAPES[hub]
    return AutoConfig.for_model(model_type, **sizes)
