"""What needs torchao runs with it: the tests of int8 weights, their timing, and the page.

It is installed in a folder of its own: where it is, peft imports it and prints what it cannot load.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT


@pytest.mark.install
def test_int8_weights_work_with_the_tested_version(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "-c", "constraints.txt"]
    subprocess.run([*pip, "--target", tmp_path / "packages", "torchao"], cwd=ROOT, check=True)
    program = [sys.executable, "-m", "pytest", "-q", "--run-thorough", "-p", "no:cacheprovider"]
    chosen = [
        "tests/modules/test_int8.py",
        "tests/suite/timing/test_inference.py::test_backends_stand_in_a_table_of_their_own",
        "tests/repository/test_pages.py",
    ]
    choice = ["-k", "int8 or backends"]
    paths = os.pathsep.join([str(tmp_path / "packages"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*program, *chosen, *choice],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^7 passed", done.stdout, re.MULTILINE), done.stdout
