"""Results of ``finegates shrink``: scores, costs, times, and their folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import finegates as fg
from finegates.cli.failures import CommandError
from finegates.cli.fine_tuning import Recipe, Row, collate, predict
from finegates.cli.quantities import change, milliseconds
from finegates.cli.resumption import check_same
from finegates.cli.scores import measure
from finegates.cli.stopwatch import dense_twin, forward_pass
from finegates.cli.task_data import TaskData
from finegates.clock import interleaved, quartiles
from finegates.files import parse_json, whole_folder

SUMMARY = "finegates-shrink.json"
FORMAT = "finegates-shrink"
VERSION = 1
ROUNDS = 15
"""Rounds of the short timing; ``finegates bench`` measures more."""


class Scores:
    """Evaluates models on the held-out rows.

    Args:
        tokenizer: of the rows.
        rows: evaluation rows, from :func:`finegates.cli.fine_tuning.encode`.
        data: their source.
        batch_size: of the evaluation and of the timing.

    Attributes:
        values: measures by model and name.
        logits: (rows, outputs) by model.
    """

    def __init__(
        self, tokenizer: Any, rows: Sequence[Row], data: TaskData, batch_size: int
    ) -> None:
        self.tokenizer = tokenizer
        self.rows = rows
        self.data = data
        self.batch_size = batch_size
        self.values: dict[str, dict[str, float]] = {}
        self.logits: dict[str, np.ndarray] = {}

    def add(self, name: str, model: nn.Module) -> None:
        """Evaluates a model."""
        logits = predict(model, self.tokenizer, self.rows, self.batch_size)
        self.logits[name] = logits
        self.values[name] = measure(self.data.measures, logits, self.data.held_out.labels)


def write(
    out: Path,
    gated: nn.Module,
    small: Any,
    scores: Scores,
    settings: Mapping[str, Any],
    recipe: Recipe,
) -> None:
    """Writes the compact model, its tokenizer and the summary, atomically.

    Args:
        out: a path that does not exist.
        gated: the trained model.
        small: its compact form.
        scores: with ``gated`` and ``compact``.
        settings: of the run.
        recipe: of the run.
    """
    dense, left = (fg.macs(model, 1, recipe.max_length).total for model in (gated, small))
    difference = np.abs(scores.logits["gated"] - scores.logits["compact"]).max()
    summary = {
        "format": FORMAT,
        "version": VERSION,
        "settings": dict(settings),
        "rows": {"train": len(scores.data.train), "evaluated": len(scores.rows)},
        "labels": scores.data.labels.names,
        "macs": {"length": recipe.max_length, "dense": dense, "compact": left},
        "parameters": {
            "dense": fg.measure_budget(gated).all_parameters,
            "compact": sum(parameter.numel() for parameter in small.parameters()),
        },
        "scores": scores.values,
        "largest_difference_of_logits": float(difference),
        "timing": _timing(small, scores),
    }
    with whole_folder(out) as aside:
        measured = {
            f"{name} on {len(scores.rows)} held-out rows": round(value, 4)
            for name, value in scores.values["compact"].items()
        }
        fg.save(small, aside, card=fg.model_card(small, scores=measured))
        scores.tokenizer.save_pretrained(aside)
        text = json.dumps(summary, indent=2, allow_nan=False)
        (aside / SUMMARY).write_text(text + "\n", encoding="utf-8")


def _timing(small: Any, scores: Scores) -> dict[str, Any]:
    """Median times of a forward pass of one batch, dense and compact."""
    device = next(small.parameters()).device
    batch = collate(scores.tokenizer, scores.rows[: scores.batch_size])
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    contenders = {
        "dense": forward_pass(dense_twin(small).to(device), inputs),
        "compact": forward_pass(small, inputs),
    }
    times = {name: quartiles(found)[1] for name, found in interleaved(contenders, ROUNDS).items()}
    rows, length = inputs["input_ids"].shape
    return {
        "batch": rows,
        "length": length,
        "threads": torch.get_num_threads(),
        "device": device.type,
        "seconds": times,
    }


def check_finished(out: Path, settings: Mapping[str, Any]) -> None:
    """Raises CommandError unless a folder is the result of these settings."""
    summary = _read(out)
    if summary is None:
        raise CommandError(
            f"--out {out}: exists and is not a result of finegates shrink; choose another folder"
        )
    check_same(summary["settings"], settings, out)


def summary_of(out: Path) -> str:
    """The summary of a result, in words."""
    summary = _read(out)
    assert summary is not None
    macs, parameters, timing = summary["macs"], summary["parameters"], summary["timing"]
    times = timing["seconds"]
    lines = {
        f"MACs of a sequence of {macs['length']} tokens": change(macs["dense"], macs["compact"]),
        "parameters, embeddings included": change(parameters["dense"], parameters["compact"]),
    }
    models = list(summary["scores"])
    for name in summary["scores"]["compact"]:
        values = [f"{model} {summary['scores'][model][name]:.4f}" for model in models]
        lines[f"{name} on {summary['rows']['evaluated']} rows"] = ", ".join(values)
    lines["largest difference of logits, gated to compact"] = (
        f"{summary['largest_difference_of_logits']:.1e}"
    )
    lines[f"time of a batch of {timing['batch']} x {timing['length']}"] = (
        f"dense {milliseconds(times['dense'])}, compact {milliseconds(times['compact'])} "
        f"(ratio {times['compact'] / times['dense']:.2f}; {timing['device']}, "
        f"{timing['threads']} threads)"
    )
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def _read(out: Path) -> dict[str, Any] | None:
    try:
        summary = parse_json((out / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_summary = isinstance(summary, dict) and summary.get("format") == FORMAT
    return summary if is_summary else None
