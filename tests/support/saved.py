"""Saved compact models for tests, and changes to them that keep the digests valid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from finegates.compaction import compact
from finegates.files import content_digest
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from support import tiny


def small_model(variant: str = "classifier", **overrides: object) -> nn.Module:
    model = attach(tiny.tiny_model("roberta", variant, **overrides), GateConfig(preset="reference"))
    tiny.scatter_gates(model)
    return compact(model)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the structure and updates its digest, so that the digest cannot reveal the damage."""
    structure = json.loads((folder / "finegates.json").read_text())
    del structure["sha256"]
    change(structure)
    structure["sha256"] = content_digest(structure)
    (folder / "finegates.json").write_text(json.dumps(structure))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Changes tensors and updates their digest, so that the digest cannot reveal the damage."""
    tensors = {k: v.clone() for k, v in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    seal(folder)


def seal(folder: Path) -> None:
    """Updates the digest of the tensors; gated and compact models note it in different places."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()

    def note(structure: dict[str, Any]) -> None:
        if "files_sha256" in structure:
            structure["files_sha256"]["model.safetensors"] = digest
        else:
            structure["tensors_sha256"] = digest

    edit(folder, note)
