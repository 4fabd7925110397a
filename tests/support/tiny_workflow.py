"""The workflow on a tiny tier, as a user starts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from support.paths import ROOT
from support.tier import TINY_SHAPE

PRETRAINING = {
    "hidden": 16,
    "layers": 2,
    "heads": 2,
    "feed_forward": 32,
    "max_length": 64,
    "documents": 200,
    "steps": 3,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "threads": 1,
}

TINY = {
    "tier": "tiny",
    "description": "a tiny tier for tests (synthetic data)",
    "results": "results",
    "seeds": [0],
    "runs_per_process": "task",
    "threads": 1,
    "model": {"name": "tiny", "pretraining": PRETRAINING},
    "data": {"name": "tiny", "generated": {"train_rows": 40, "validation_rows": 32, "seed": 3}},
    "tasks": ["cola", "stsb"],
    "training": {"epochs": 2, "batch_size": 8, "max_length": 64},
    "methods": {
        "full": {"experiment": "full"},
        "lora": {"experiment": "lora"},
        "reference-s0.4": {
            "experiment": "reference",
            "gates": {"target": 0.4},
            "gate_learning_rate": 0.2,
        },
        "magnitude-s0.4": {
            "experiment": "magnitude",
            "magnitude": {"match": "reference-s0.4"},
        },
        "distilled": {
            "experiment": "structured",
            "gates": {"target": 0.4},
            "distillation": {"teacher": "full"},
        },
    },
    "studies": {
        "tasks": ["cola"],
        "seeds": [0, 1],
        "methods": {
            "on": {
                "experiment": "reference",
                "gates": {"target": 0.4},
                "continues": {"method": "reference-s0.4"},
            },
        },
        "compared": {
            "on": {
                "title": "Training on",
                "question": "What changes?",
                "methods": ["reference-s0.4", "on"],
            },
            "kinds": {
                "title": "Kinds",
                "question": "Which is it?",
                "methods": ["full", "lora", "reference-s0.4", "magnitude-s0.4"],
                "timed": True,
            },
        },
        "shared": ["lora", "reference-s0.4"],
        "properties": ["lora", "reference-s0.4"],
        "batch": 2,
        "length": 8,
        "repeats": 2,
    },
    "training_benchmark": {"batch_size": 2, "length": 8, "steps": 4, "repeats": 1},
    "inference_benchmarks": [TINY_SHAPE],
    "theory": {
        "problems": 1,
        "trials": 3,
        "limit": 20,
        "runs": 8,
        "steps": 1000,
        "samples": 1000,
        "gate_steps": 20,
        "network": {"steps": 4, "looks": 2, "rows": 8},
    },
}


def run(folder: Path, tier: dict, *arguments: str) -> tuple[int, str]:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tier, sort_keys=False))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--directory", str(folder), *arguments, "--config", f"tier={folder / 'tiny.yaml'}"]
    done = subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    return done.returncode, done.stdout
