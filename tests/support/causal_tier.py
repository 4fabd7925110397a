"""A tier of tiny files for tests of the experiments on Llama: text and a random Llama."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from finegates.suite.config.tier import Tier
from finegates.suite.data.tokenizer import train_tokenizer
from support.tier import WORDS, tiny_tier

SIZES: dict[str, Any] = {
    "hidden": 16,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "feed_forward": 24,
    "positions": 32,
}

TRAINING: dict[str, Any] = {
    "steps": 8,
    "length": 16,
    "batch_size": 4,
    "learning_rate": 0.05,
    "final_rate": 0.5,
    "log_every": 2,
    "eval_every": 4,
}


def write_text(folder: Path, documents: int = 60) -> None:
    """Writes text in which each word mostly determines the next; empty lines separate documents."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(1)
    for split in ("train", "validation"):
        texts = []
        for _ in range(documents):
            place, words = draw.randrange(10), []
            for _ in range(draw.randint(3, 9)):
                words.append(WORDS[place])
                place = (place + (1 if draw.random() < 0.9 else 3)) % 10
            texts.append(" ".join(words))
        (folder / f"{split}.txt").write_text("\n\n".join(texts))


def write_llama(folder: Path, positions: int = 32) -> None:
    """Writes a random Llama with grouped queries and its tokenizer, in Hugging Face layout."""
    tokenizer = train_tokenizer([" ".join(WORDS)], max_length=positions)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        max_position_embeddings=positions,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def llama_section(folder: Path, **training: Any) -> dict[str, Any]:
    """The section ``llama`` of a tier with files below ``folder``."""
    settings = {**TRAINING, **training}
    return {
        "description": "tiny Llama for tests",
        "text": {"name": "tiny", "path": str(folder / "text"), "validation_documents": 12},
        "pretraining": {
            "sizes": {"tiny": dict(SIZES)},
            "tokenizer": {"path": str(folder / "llama")},
            "training": {**settings, "final_rate": 0.1},
            "methods": {
                "gated": {
                    "title": "Gates",
                    "targets": [0.4],
                    "penalty_weight": 100,
                    "start_step": 2,
                    "modules": [
                        "*gate_proj",
                        "*up_proj",
                        "*q_proj",
                        "*k_proj",
                        "*v_proj",
                        "*o_proj",
                    ],
                },
            },
        },
        "posttraining": {
            "models": {"tiny": {"name": "tiny Llama", "path": str(folder / "llama")}},
            "training": settings,
            "methods": {
                "reference": {"title": "Gates", "targets": [0.2, 0.4]},
                "structured": {
                    "title": "Shared gates",
                    "preset": "structured",
                    "targets": [0.4],
                },
                "biased": {
                    "title": "Gates, random biases",
                    "targets": [0.2],
                    "random_biases": True,
                },
            },
            "match": ["reference", "structured"],
            "calibration": 4,
        },
        "on_task": {
            "model": {"name": "tiny Llama", "path": str(folder / "llama")},
            "tasks": ["cola"],
            "training": {"epochs": 1, "batch_size": 8, "max_length": 24},
            "methods": {
                "full": {"experiment": "full"},
                "lora": {"experiment": "lora"},
                "gates": {
                    "experiment": "reference",
                    "gates": {"target": 0.4},
                    "gate_learning_rate": 0.3,
                },
                "magnitude": {"experiment": "magnitude", "magnitude": {"match": "gates"}},
            },
        },
        "step_benchmark": {"batch_size": 2, "length": 8, "repeats": 2},
    }


def causal_tier(folder: Path, llama: dict[str, Any] | None = None, **training: Any) -> Tier:
    """A tier with a section ``llama`` on files below ``folder``, which are written if missing."""
    if not (folder / "llama").is_dir():
        write_llama(folder / "llama")
        write_text(folder / "text")
    return tiny_tier(folder, llama=llama or llama_section(folder, **training))
