"""A ``config.json`` that makes ``from_pretrained`` fail with the remedy.

Without it, a class of transformers would use its default configuration, build that model, which may
have billions of parameters, and only then miss the tensors.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finegates.files import parse_json, write_text

CONFIG = "config.json"
"""The file that ``from_pretrained`` reads first."""

GATED = "finegates-gated"
COMPACT = "finegates-compact"
"""The formats, used as ``model_type`` of a signpost."""

_KINDS = {GATED: "gated", COMPACT: "compact"}


def write_signpost(folder: Path, form: str) -> None:
    """Writes the signpost of a format into a folder; replaces the ``config.json`` there.

    Args:
        folder: an existing one.
        form: :data:`GATED` or :data:`COMPACT`.
    """
    remedy = (
        f"this folder holds a {_KINDS[form]} model: finegates.load(folder) reads it, "
        "from_pretrained cannot"
    )
    # Auto-classes refuse the type; other classes ignore it, but refuse an invalid size.
    signpost = {
        "model_type": form,
        **dict.fromkeys(("vocab_size", "hidden_size", "tie_word_embeddings"), remedy),
        # Satisfies AutoTokenizer, which reads a configuration of unknown type. Without it, the
        # tokenizer in the folder is still read, with a warning about the model's type.
        "tokenizer": {"model_type": ""},
    }
    write_text(folder / CONFIG, json.dumps(signpost, indent=2) + "\n")


def is_signpost(folder: Path) -> bool:
    """Whether the ``config.json`` of a folder is a signpost."""
    return said(folder / CONFIG, "model_type") in _KINDS


def said(file: Path, key: str) -> Any:
    """A value of a JSON file, or None."""
    try:
        values = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values.get(key) if isinstance(values, dict) else None
