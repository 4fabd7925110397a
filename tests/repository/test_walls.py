"""Import layers: no layer imports a higher one, and the library never imports the suite."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT

pytest.importorskip("importlinter", reason="import-linter belongs to the extra 'lint'")


@pytest.fixture
def copy(tmp_path) -> Path:
    """A modifiable copy of the sources and the import contracts."""
    for package in ("finegates", "theory"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=lambda *_: {"__pycache__"})
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports_command; "
    )
    return subprocess.run(
        [sys.executable, "-c", f"{code} lint_imports_command()", "--no-cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


PLANTED = {
    "finegates.budget": "finegates.suite.stats",
    "finegates.cli.plan": "finegates.suite.verify",
    "finegates.gates.gate": "finegates.compaction.attention_rule",
    "finegates.modules.linear": "finegates.adapters.parts",
    "finegates.files": "finegates.blocks",
    "finegates.suite.config.tier": "finegates.suite.runs.record",
    "finegates.suite.stats": "theory.lora",
}
"""Forbidden imports from higher layers, by the importing module."""


def test_every_import_of_a_higher_room_is_caught(copy):
    future = "from __future__ import annotations\n"
    for module, forbidden in PLANTED.items():
        path = copy / f"{module.replace('.', '/')}.py"
        text = path.read_text()
        assert future in text
        path.write_text(text.replace(future, f"{future}import {forbidden}\n", 1))
    done = lint(copy)
    assert done.returncode != 0
    said = " ".join(done.stdout.split())
    assert [m for m, f in PLANTED.items() if f"{m} -> {f}" not in said] == []


def test_the_walls_hold(copy):
    done = lint(copy)
    assert done.returncode == 0, done.stdout
