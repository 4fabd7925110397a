"""A tier of tiny local files for tests: a random encoder, its tokenizer, two tables."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import RobertaConfig, RobertaForMaskedLM

from finegates.suite.config.load import CONFIG, resolve_tier
from finegates.suite.config.tasks import task_named
from finegates.suite.config.tier import Tier
from finegates.suite.data.glue import split_path
from finegates.suite.data.tokenizer import train_tokenizer

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]

TINY_SHAPE: dict[str, Any] = {
    "name": "tiny",
    "model_type": "roberta",
    "sizes": {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 40,
    },
    "repeats": 2,
    "cases": [
        {"gates": "random", "kept": 1.0, "batch": 2, "length": 8, "reach": 1e6, "against": "dense"},
        {"gates": "random", "kept": 0.6, "batch": 2, "length": 8, "reach": 1e-6},
        {"gates": "structured", "kept": 0.5, "batch": 1, "length": 8},
    ],
}


def write_tables(folder: Path, tasks: tuple[str, ...] = ("cola", "stsb"), rows: int = 48) -> None:
    """Writes tables in which the first word determines the label."""
    draw = random.Random(0)
    for task in tasks:
        spec = task_named(task)
        for split in ("train", "validation"):
            columns: dict[str, Any] = {
                name: [" ".join(draw.choices(WORDS, k=draw.randint(2, 6))) for _ in range(rows)]
                for name in spec.columns
            }
            first = [WORDS.index(text[0]) for text in columns[spec.columns[0]]]
            columns["label"] = (
                pa.array([i / 2 for i in first], pa.float32())
                if spec.labels is None
                else pa.array([i % spec.num_labels for i in first], pa.int64())
            )
            path = split_path(folder, task, split)
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(columns), path)


def write_encoder(folder: Path) -> None:
    """Writes a random two-layer RoBERTa with its tokenizer, in Hugging Face layout."""
    tokenizer = train_tokenizer([" ".join(WORDS)], max_length=32)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
    )
    RobertaForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tiny_tier(folder: Path, **overrides: Any) -> Tier:
    """A tier on files below ``folder``, which are written if missing."""
    if not (folder / "encoder").is_dir():
        write_encoder(folder / "encoder")
        write_tables(folder / "data")
    raw = {
        "tier": "tiny",
        "description": "tiny files for tests",
        "results": str(folder / "results"),
        "seeds": [0],
        "runs_per_process": "task",
        "threads": 1,
        "model": {"name": "tiny", "path": str(folder / "encoder")},
        "data": {"name": "tiny", "path": str(folder / "data")},
        "tasks": ["cola", "stsb"],
        "training": {"epochs": 2, "batch_size": 8, "max_length": 24},
        "methods": {
            "full": {"experiment": "full"},
            "random": {"experiment": "random"},
            "lora": {"experiment": "lora"},
            "gates": {
                "experiment": "reference",
                "gates": {"target": 0.4},
                "gate_learning_rate": 0.3,
            },
            "gates-lora": {"experiment": "gates_lora", "gates": {"target": 0.2}},
            "structured": {
                "experiment": "structured",
                "gates": {"target": 0.4},
                "gate_learning_rate": 0.05,
            },
            "structured-lora": {
                "experiment": "structured",
                "gates": {"target": 0.6},
                "gate_learning_rate": 0.05,
                "lora": {"rank": 2},
            },
            "distilled": {
                "experiment": "structured",
                "gates": {"target": 0.4},
                "gate_learning_rate": 0.05,
                "distillation": {"teacher": "full"},
            },
            "magnitude": {"experiment": "magnitude", "magnitude": {"match": "gates"}},
        },
        "inference_benchmarks": [TINY_SHAPE],
        **overrides,
    }
    return resolve_tier(raw, folder / "tiny.yaml", CONFIG / "experiments")
