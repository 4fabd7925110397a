"""The option ``--specs``: models whose descriptions a file registers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RemBertConfig, RemBertForSequenceClassification

import finegates as fg
from finegates.adapters import register
from finegates.cli import main
from support.cli_models import reviews, tokenizer, write_csv
from support.described import described_model
from support.undescribed import SPECS, forget, gated_splinter, splinter


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The dense, gated and compact model, the text that a folder stores, and data."""
    place = tmp_path_factory.mktemp("splinter")
    register(*SPECS)
    model = gated_splinter()
    fg.save(model, place / "gated")
    fg.save(fg.compact(model), place / "compact")
    forget()
    splinter().save_pretrained(place / "dense")
    for name in ("dense", "gated", "compact"):
        tokenizer().save_pretrained(place / name)
    stored = json.loads((place / "compact" / "finegates.json").read_text())["descriptions"]
    (place / "specs.py").write_text(stored)
    write_csv(place / "data.csv", reviews())
    return {path.stem: str(path) for path in place.iterdir()}


@pytest.fixture(autouse=True)
def _nothing_registered() -> Iterator[None]:
    forget()
    yield
    forget()


COMMANDS = (
    ("plan", "{dense}"),
    ("plan", "{gated}"),
    ("plan", "{compact}"),
    ("bench", "{compact}", "--rounds", "1", "--batch", "1", "--length", "8"),
    ("compact", "{gated}", "--out", "{tmp}/out"),
    ("export", "{compact}", "--stock", "{tmp}/out"),
    ("export", "{compact}", "--onnx", "{tmp}/out.onnx"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_takes_a_model_whose_descriptions_a_file_registers(
    command: tuple[str, ...], folders: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    words = [word.format(tmp=tmp_path, **folders) for word in command]
    assert main(words) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert len(told) < 600
    assert "--specs FILE.py" in told
    assert "finegates.adapters.register" in told
    assert main([*words, "--specs", folders["specs"]]) == 0


def test_shrinking_starts_from_a_model_whose_descriptions_a_file_registers(
    folders: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    sizes = {"vocab_size": 40, "hidden_size": 12, "intermediate_size": 16}
    config = RemBertConfig(**sizes, num_hidden_layers=1, num_attention_heads=2)
    model, path = RemBertForSequenceClassification(config), tmp_path / "rembert"
    model.save_pretrained(path)
    tokenizer().save_pretrained(path)
    inputs = {"input_ids": torch.tensor([[0, 7, 9, 2], [0, 30, 8, 2]])}
    (tmp_path / "specs.py").write_text(str(fg.describe(model.eval(), inputs)))
    given = ["--train", folders["data"], "--max-length", "8", "--dry-run"]
    words = ["shrink", str(path), *given, "--out", str(tmp_path / "out")]
    assert main(words) == 1
    assert "--specs FILE.py" in capsys.readouterr().err
    assert main([*words, "--specs", str(tmp_path / "specs.py")]) == 0


@pytest.mark.parametrize("name", ["vit", "whisper", "splinter"])
def test_a_model_without_a_head_for_text_is_not_shrunk_and_the_message_is_short(
    name: str, folders: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    if name == "splinter":
        where = Path(folders["dense"])
    else:
        where = tmp_path / name
        described_model(name, "image" if name == "vit" else "speech").save_pretrained(where)
    words = ["--train", folders["data"], "--out", str(tmp_path / "out"), "--dry-run"]
    assert main(["shrink", str(where), *words]) == 1
    told = capsys.readouterr().err
    assert "shrink is for text classification only" in told
    assert f"models of type {name!r}" in told
    assert "finegates.GateTrainer" in told
    assert len(told) < 400


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (None, "no such file"),
        ("register(", "SyntaxError"),
        ("\nregister(Missing())", "line 2: NameError: name 'Missing' is not defined"),
        ("register(1)", "line 1: TypeError"),
    ],
)
def test_a_file_of_descriptions_that_fails_is_named_with_its_line(
    code: str | None, told: str, folders: dict[str, str], tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "specs.py"
    if code is not None:
        path.write_text(code)
    assert main(["plan", folders["compact"], "--specs", str(path)]) == 1
    text = capsys.readouterr().err
    assert f"--specs {path}" in text
    assert told in text
    assert text.count("\n") == 1


def test_a_file_of_descriptions_imports_modules_next_to_it(
    folders: dict[str, str], tmp_path: Path
) -> None:
    stored = Path(folders["specs"]).read_text()
    (tmp_path / "my_specs.py").write_text(f"from finegates.adapters import *\n{stored}\n")
    (tmp_path / "specs.py").write_text("import my_specs\n")
    words = ["plan", folders["compact"], "--specs", str(tmp_path / "specs.py")]
    assert main(words) == 0


def test_a_traceback_ends_with_the_code_that_a_folder_stores(
    folders: dict[str, str], capsys: Any
) -> None:
    assert main(["plan", folders["gated"], "--traceback"]) == 1
    assert Path(folders["specs"]).read_text() in capsys.readouterr().err
