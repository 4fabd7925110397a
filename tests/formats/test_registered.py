"""A folder shows the descriptions that its model was made with, where they are not known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import finegates as fg
from finegates import adapters
from finegates.adapters import register
from finegates.formats.description import read_description, write_description
from finegates.formats.structure import FORMAT, VERSION, CompactFormatError
from support.tiny import scatter_gates, tiny_model
from support.undescribed import SPECS, forget, gated_splinter


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
    model = gated_splinter()
    if compact:
        model = fg.compact(model)
    fg.save(model, tmp_path / "model")
    expected = output(model)
    forget()
    with pytest.raises(ValueError, match="splinter.SplinterSelfAttention") as refusal:
        fg.load(tmp_path / "model")
    text = str(refusal.value)
    assert "register them before loading" in text
    assert "--specs FILE.py" in text
    assert "\n" not in text
    code = json.loads((tmp_path / "model" / "finegates.json").read_text())["descriptions"]
    assert refusal.value.__notes__[0].endswith(code)
    exec(code, {name: getattr(adapters, name) for name in adapters.__all__})
    assert torch.equal(output(fg.load(tmp_path / "model")), expected)


def test_a_model_of_known_types_shows_none(tmp_path: Path) -> None:
    model = fg.attach(tiny_model("bert"), fg.GateConfig())
    scatter_gates(model, mean=0.7)
    fg.save(fg.compact(model.eval()), tmp_path / "model")
    assert "descriptions" not in json.loads((tmp_path / "model" / "finegates.json").read_text())


@pytest.mark.usefixtures("registered")
def test_a_folder_with_known_descriptions_that_is_wrong_does_not_blame_them(tmp_path: Path) -> None:
    fg.save(fg.compact(gated_splinter()), tmp_path)
    structure = read_description(tmp_path, FORMAT, VERSION, CompactFormatError)
    structure["config"]["intermediate_size"] = 41
    write_description(tmp_path, structure)
    with pytest.raises(ValueError, match="finegates.json does not describe a model") as refusal:
        fg.load(tmp_path)
    assert not hasattr(refusal.value, "__notes__")


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("code", ["register(", "1", "x = y", "register(x)", "[" * 10_000])
def test_descriptions_that_are_not_code_are_not_shown_as_such(code: str, tmp_path: Path) -> None:
    fg.save(fg.compact(gated_splinter()), tmp_path)
    structure = read_description(tmp_path, FORMAT, VERSION, CompactFormatError)
    write_description(tmp_path, {**structure, "descriptions": code})
    forget()
    with pytest.raises(CompactFormatError, match="finegates"):
        fg.load(tmp_path)
