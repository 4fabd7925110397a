"""Attaching, training and compacting each log one line through the logger ``finegates``."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import TrainingArguments

import finegates as fg
from support import tiny


def rows(count: int) -> list[dict[str, object]]:
    """Random tokens; the first one determines the label."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, tiny.VOCABULARY, (count, 6), generator=generator)
    return [{"input_ids": row, "labels": int(row[0]) % 2} for row in ids]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [r.getMessage() for r in caplog.records if r.name.split(".")[0] == "finegates"]
    caplog.clear()
    return found


@pytest.mark.parametrize("preset", ["structured", "reference"])
def test_each_step_of_the_ten_lines_says_one_line(preset, caplog, tmp_path):
    caplog.set_level(logging.INFO, "finegates")
    model = tiny.tiny_model("bert", dtype=torch.float32)
    dense = sum(p.numel() for p in model.parameters())
    fg.attach(model, fg.GateConfig(preset=preset, target=0.4))
    (line,) = lines(caplog)
    # In each of two layers: query, key, value, output, and the two of the feed-forward part.
    assert "to 12 layers of BertForSequenceClassification" in line
    assert f"preset {preset}); target: remove 40 %" in line

    arguments = TrainingArguments(
        tmp_path, max_steps=4, per_device_train_batch_size=2, report_to=[], save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    trainer = fg.GateTrainer(model, arguments, train_dataset=rows(8))
    trainer.train()
    (line,) = lines(caplog)
    assert line.startswith("trained 4 steps: ")
    if preset == "structured":
        assert f", {100 * trainer.penalty.realised():.1f} % of the MACs kept (goal 60 %)" in line

    small = fg.compact(model)
    (line,) = lines(caplog)
    after = sum(p.numel() for p in small.parameters())
    assert f"compacted BertForSequenceClassification: {dense:,} -> {after:,} parameters" in line
    assert "MACs a token" in line
