"""The program: its help, its exit statuses, and its messages for errors."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib

import pytest

import finegates as fg
from finegates.cli import main, program, suite
from finegates.cli.failures import CommandError, one_line
from support.cli_models import checkpoint
from support.paths import ROOT

COMMANDS = ("plan", "shrink", "compact", "export", "bench")


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The single line on standard error."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("finegates: error: ")
    return lines[0].removeprefix("finegates: error: ")


def test_the_installed_program_is_the_module(tmp_path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["scripts"]["finegates"].partition(":")
    assert getattr(importlib.import_module(module), name) is main
    done = subprocess.run(
        [sys.executable, "-m", "finegates", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stderr == ""
    for command in (*COMMANDS, *suite.SUITE):
        assert f"\n    {command} " in done.stdout
    for status in ("0    success", "1    failure", "2    ", "130  interrupted"):
        assert status in done.stdout


def test_help_is_shown_without_torch():
    code = "import sys; from finegates.cli import main; main(['shrink', '--help']); "
    code += "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_an_example(capsys, command):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"  finegates {command} " in text.partition("example")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_a_command_are_read_by_its_parser(command, capsys):
    main([command, "--help"])
    text = capsys.readouterr().out.partition("example")[2].replace("\\\n", " ")
    lines = [
        line.split() for line in text.splitlines() if line.startswith(f"  finegates {command}")
    ]
    assert lines
    for _, *words in lines:
        assert program.parser().parse_args(words).command == command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage: finegates"),
        (["shrnk"], "invalid choice: 'shrnk'"),
        (["shrink", "m", "--out", "o"], "one of the arguments --train --task is required"),
        (["shrink", "m", "--train", "f", "--task", "rte", "--out", "o"], "not allowed with"),
        (
            ["shrink", "m", "--train", "f", "--out", "o", "--target", "1"],
            "must be between 0 and 1",
        ),
        (["shrink", "m", "--train", "f", "--out", "o", "--epochs", "0"], "must be at least 1"),
        (["shrink", "m", "--train", "f", "--out", "o", "--seed", "-1"], "must be at least 0"),
        (["shrink", "m", "--train", "f", "--out", "o", "--learning-rate", "nan"], "above 0"),
        (["bench", "m", "--batch", "x"], "must be a whole number"),
        (["export", "m"], "say what to write: --onnx FILE, --stock DIR, or both"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_its_usage(capsys, words, message):
    assert main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "./nowhere"], "./nowhere: no such folder; check the path, or give a hub id"),
        (["plan", "~/nowhere"], "~/nowhere: no such folder; check the path, or give a hub id"),
        (["plan", "{tmp}/m/nowhere"], "nowhere: no such folder; check the path, or give a hub id"),
        (["plan", "{tmp}"], "{tmp} holds neither config.json nor finegates.json; give a folder"),
        (["plan", "{tmp}/file"], "{tmp}/file is a file; give the folder"),
        (["plan", "{model}", "--cost", "none"], "--cost none: no such file; use 'smallest', "),
        (["plan", "{model}", "--cost", "{tmp}/file"], "{tmp}/file is not a cost model"),
        (["compact", "{model}", "--out", "{tmp}/new"], "has no gates, so there is nothing to "),
        (["compact", "{model}", "--out", "{model}"], "--out {model}: exists already; choose "),
        (["export", "{model}", "--stock", "{model}"], "--stock {model}: exists already; choose"),
        (["export", "{model}", "--onnx", "{model}"], "--onnx {model}: is a folder; name a file"),
        (["bench", "{model}", "--length", "99"], "longer than the 14 positions that RobertaM"),
        (["plan", "{damaged}"], "{damaged}: cannot be loaded ("),
    ],
)
def test_a_command_that_fails_says_one_line_and_writes_nothing(tmp_path, capsys, words, message):
    (tmp_path / "file").write_text("text")
    places = {"tmp": tmp_path, "model": checkpoint(tmp_path / "m")}
    places["damaged"] = checkpoint(tmp_path / "d")
    (tmp_path / "d" / "model.safetensors").write_bytes(b"no tensors")
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main([word.format(**places) for word in words]) == 1
    captured = capsys.readouterr()
    assert message.format(**places) in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("finegates: error: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_hub_id_that_cannot_be_had_is_an_error_with_the_remedy(capsys):
    assert main(["plan", "nobody/nothing"]) == 1
    assert "check the id and the network, or give a folder" in error_line(capsys)


@pytest.fixture
def hub(monkeypatch):
    """A hub that says what it was asked for."""

    def asked(where: str, **_: object) -> None:
        raise ConnectionError(f"asked for {where}")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", asked)


@pytest.mark.usefixtures("hub")
def test_a_name_in_a_folder_that_exists_is_a_folder_and_no_hub_is_asked(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert main(["plan", "models/nothing"]) == 1
    assert "models/nothing: no such folder; check the path" in error_line(capsys)
    for name in ("org/nothing", "nothing"):
        assert main(["plan", name]) == 1
        assert f"{name}: cannot be loaded (asked for {name}); check the id" in error_line(capsys)


@pytest.mark.usefixtures("hub")
def test_offline_only_models_that_are_stored_are_looked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("nothing", "org/nothing", "not an id"):
        assert main(["plan", name]) == 1
        assert f"{name}: no such folder, and no model hub is asked" in error_line(capsys)
    stored = tmp_path / "models--org--model"
    for path, text in {"refs/main": "0123", "snapshots/0123/config.json": "{}"}.items():
        (stored / path).parent.mkdir(parents=True)
        (stored / path).write_text(text)
    assert main(["plan", "org/model"]) == 1
    assert "org/model: cannot be loaded (asked for org/model)" in error_line(capsys)


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_traceback_is_shown_when_asked_for_wherever_it_is_asked(capsys, place):
    words = ["plan", "./nowhere", "--length", "8"]
    words.insert({0: 0, 1: 1, 3: 4}[place], "--traceback")
    assert main(words) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_interruption_ends_with_130(monkeypatch, capsys):
    def interrupted(where: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("finegates.cli.checkpoints.load_model", interrupted)
    assert main(["plan", "m"]) == 130
    assert capsys.readouterr().err == "finegates: interrupted\n"


def test_a_message_of_several_lines_is_told_on_one():
    assert one_line(ValueError("first\n  second")) == "first second"
    assert one_line(KeyError("a name\nof two lines")) == "a name of two lines"
    assert one_line(AssertionError()) == "AssertionError; --traceback shows the traceback"
    assert one_line(AttributeError("x")) == "AttributeError: x; --traceback shows the traceback"


@pytest.mark.parametrize("command", suite.SUITE)
def test_the_commands_of_the_suite_are_there_and_read_their_own_words(command, capsys):
    assert main([command, "--help"]) == 0
    assert "usage: " in capsys.readouterr().out


def test_the_status_of_a_command_of_the_suite_is_its_own(tmp_path, capsys):
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert "holds no tables/runs.csv" in capsys.readouterr().err
    assert main(["verify", "no_such_tier"]) == 1


def test_a_package_that_the_suite_lacks_is_named_with_the_extra(monkeypatch, capsys):
    error = ModuleNotFoundError("No module named 'pandas'", name="pandas")

    def missing(name: str) -> None:
        raise error

    monkeypatch.setattr(suite.importlib, "import_module", missing)
    assert main(["compare", "a", "b"]) == 1
    line = error_line(capsys)
    assert "finegates compare needs the package 'pandas'" in line
    assert "pip install 'finegates[suite]'" in line


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"finegates {fg.__version__}\n"


def test_errors_of_the_command_line_are_errors_for_people():
    assert one_line(CommandError("what: why; remedy")) == "what: why; remedy"
