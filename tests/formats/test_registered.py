"""A folder shows the descriptions that its model was made with, where they are not known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import SplinterConfig, SplinterModel

import finegates as fg
from finegates import adapters
from finegates.adapters import AttentionSpec, FeedForwardSpec, described, register
from finegates.adapters.registered import REGISTERED
from support.tiny import scatter_gates, tiny_model

SPECS = (
    AttentionSpec(
        classes=("splinter.SplinterSelfAttention",),
        q="query",
        k="key",
        v="value",
        o="^output.dense",
        width="attention_head_size",
        sizes={"num_attention_heads": "heads", "all_head_size": "heads*width"},
        joint=True,
    ),
    FeedForwardSpec(
        classes=("splinter.SplinterLayer",),
        up="intermediate.dense",
        down="output.dense",
        phi="intermediate.intermediate_act_fn",
    ),
)


def forget() -> None:
    """As in a process that registered nothing."""
    for spec in SPECS:
        for name in spec.classes:
            described._attention_specs().pop(name, None)
            described._feed_specs().pop(name, None)
    REGISTERED.clear()


@pytest.fixture
def registered() -> Any:
    register(*SPECS)
    yield
    forget()


def output(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(16)[None]).last_hidden_state
    return found


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("compact", [True, False])
def test_a_process_without_the_descriptions_is_shown_them(compact: bool, tmp_path: Path) -> None:
    config = SplinterConfig(
        vocab_size=40,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
    )
    torch.manual_seed(0)
    model = fg.attach(SplinterModel(config), fg.GateConfig(sequence_length=16))
    scatter_gates(model, mean=0.7)
    if compact:
        model = fg.compact(model.eval())
    fg.save(model, tmp_path / "model")
    expected = output(model)
    forget()
    with pytest.raises(ValueError, match="splinter.SplinterSelfAttention") as refusal:
        fg.load(tmp_path / "model")
    text = str(refusal.value)
    assert "register them before loading" in text
    code = json.loads((tmp_path / "model" / "finegates.json").read_text())["descriptions"]
    assert text.endswith(code)
    exec(code, {name: getattr(adapters, name) for name in adapters.__all__})
    assert torch.equal(output(fg.load(tmp_path / "model")), expected)


def test_a_model_of_known_types_shows_none(tmp_path: Path) -> None:
    model = fg.attach(tiny_model("bert"), fg.GateConfig())
    scatter_gates(model, mean=0.7)
    fg.save(fg.compact(model.eval()), tmp_path / "model")
    assert "descriptions" not in json.loads((tmp_path / "model" / "finegates.json").read_text())
