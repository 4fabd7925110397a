"""Chooses the newest versions that fit together and writes them as constraints: make update.

    python .ci/update.py TORCH FILE

pip resolves pyproject.toml with all its extras and reports what it would install; nothing is
installed. torch stays at the version TORCH: pip would take the newest, GPU build and all. Packages
that come with a GPU build are left out, for torch itself pins them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# The versions that were tested, for Python 3.11. Written by make update.\n"
INSTALLERS = ("pip", "setuptools")
_OF_A_GPU_BUILD = re.compile(r"(nvidia|cuda)[-_].*|triton|finegates", re.IGNORECASE)


def requirements(project: dict[str, Any], torch: str) -> list[str]:
    """What pip is to resolve: the project's dependencies, all its extras, the installers."""
    extras = project["optional-dependencies"].values()
    named = [*project["dependencies"], *(name for extra in extras for name in extra)]
    others = [line for line in named if not re.match(r"torch\b(?!-)", line)]
    return [f"torch=={torch}", *INSTALLERS, *others]


def constraints(report: dict[str, Any]) -> str:
    """The file's text for what pip reports that it would install."""
    found = [entry["metadata"] for entry in report["install"]]
    lines = [
        # A build's local part (+cpu) is the machine's, not the project's.
        f"{package['name']}=={package['version'].partition('+')[0]}"
        for package in found
        if not _OF_A_GPU_BUILD.fullmatch(package["name"])
    ]
    return HEADER + "".join(f"{line}\n" for line in sorted(lines, key=str.lower))


def main(torch: str, file: str) -> None:
    """Resolves and writes."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    command += ["--quiet", "--disable-pip-version-check", "--no-input", "--report", "-"]
    done = subprocess.run(
        [*command, *requirements(project, torch)], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit("make update: pip found no versions that fit together; its message is above")
    Path(file).write_text(constraints(json.loads(done.stdout)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
