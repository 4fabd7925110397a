"""The guide of the README, run as it stands on a tiny model: what it promises is what comes out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from finegates.budget import macs, planned_macs
from finegates.compaction import CompactLinear
from tiny import VOCABULARY, tiny_model

README = Path(__file__).parents[2] / "README.md"
CHECKPOINT = "FacebookAI/roberta-base"
# Wide enough that one dimension is far less than a point of the budget.
SIZES = {"hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 4}


def guide() -> str:
    section = README.read_text().split("## Shrink your own model\n")[1]
    found = re.search(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_guide_takes_ten_lines_besides_its_imports():
    lines = [line for line in guide().splitlines() if line and "import" not in line]
    assert len(lines) <= 10


def test_the_guide_makes_a_smaller_model_of_the_asked_cost_that_reloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_model("roberta", dtype=torch.float32, **SIZES).save_pretrained("checkpoint")
    dense = AutoModelForSequenceClassification.from_pretrained("checkpoint")
    ids = torch.randint(3, VOCABULARY, (32, 6), generator=torch.Generator().manual_seed(0))
    given = {"train": [{"input_ids": row, "labels": int(row[0]) % 2} for row in ids]}
    code = guide()
    assert CHECKPOINT in code
    exec(code.replace(CHECKPOINT, "checkpoint"), given)
    small, gated = given["small"], given["model"].eval()
    assert any(isinstance(module, CompactLinear) for module in small.modules())
    # Sides that would not pay stay dense on such a small model, so that it may cost more.
    assert macs(small, 1, 128).total / macs(dense, 1, 128).total >= 0.58
    kept = planned_macs(gated, 1, 128).total / macs(dense, 1, 128).total
    assert kept == pytest.approx(0.6, abs=0.02)
    assert "blocks: " in capsys.readouterr().out, "the plan was printed"
    with torch.no_grad():
        expected, found = gated(input_ids=ids).logits, small(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(expected, dense.eval()(input_ids=ids).logits, atol=1e-2)
