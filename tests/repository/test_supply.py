"""Versions: pins match the declared ranges, and no file names a registry."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TESTED = ("suite", "onnx", "test")
"""Extras that are also tested with their oldest versions."""


def pins(file: str) -> dict[str, str]:
    lines = (ROOT / file).read_text().splitlines()
    found = dict(line.split("==") for line in lines if not line.startswith("#"))
    return {name.lower().replace("_", "-"): version for name, version in found.items()}


def bounds(extras: tuple[str, ...]) -> dict[str, str]:
    named = [
        *PROJECT["dependencies"],
        *(line for extra in extras for line in PROJECT["optional-dependencies"][extra]),
    ]
    split = [re.fullmatch(r"([\w.-]+)(?:\[\w+\])?(?:>=([\d.]+))?", line) for line in named]
    assert all(split)
    return {match[1].lower().replace("_", "-"): match[2] for match in split if match and match[2]}


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def padded(version: str) -> tuple[int, ...]:
    return (*numbers(version), 0, 0, 0)[:3]


def test_the_oldest_versions_are_the_declared_lower_bounds():
    oldest = pins("constraints-oldest.txt")
    declared = bounds(TESTED)
    assert oldest.keys() == declared.keys()
    assert {name: padded(v) for name, v in oldest.items()} == {
        name: padded(v) for name, v in declared.items()
    }


def test_every_declared_package_is_pinned_at_or_above_its_bound():
    pinned = pins("constraints.txt")
    for name, bound in bounds(tuple(PROJECT["optional-dependencies"])).items():
        assert numbers(pinned[name]) >= numbers(bound), name


def test_torch_is_the_same_everywhere():
    assert pins("constraints.txt")["torch"] == pins("constraints-oldest.txt")["torch"]


def test_the_readme_names_the_tested_versions_of_transformers():
    versions = [pins(f"constraints{kind}.txt")["transformers"] for kind in ("-oldest", "")]
    assert [numbers(version)[0] for version in versions] == [5, 5]
    readme = (ROOT / "README.md").read_text()
    stated = [versions[0], ".".join(versions[1].split(".")[:2])]
    assert f"transformers {stated[0]} and {stated[1]}" in readme


def test_no_file_names_an_index():
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if path.suffix in {".txt", ".toml", ".yml", ".yaml", ".md", ".py", ""} and path.is_file():
            text = path.read_text(errors="replace")
            assert not re.search(r"^[^#\n]*--(extra-)?index-url|--find-links", text, re.M) or (
                path == Path(__file__)
            ), path


@pytest.fixture(scope="module")
def update() -> ModuleType:
    spec = importlib.util.spec_from_file_location("update", ROOT / ".ci" / "update.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_updating_asks_for_everything_declared_and_for_one_version_of_torch(update):
    asked = update.requirements(PROJECT, "2.13.0")
    assert [name for name in asked if re.match(r"torch\b(?!-)", name)] == ["torch==2.13.0"]
    declared = set(PROJECT["dependencies"])
    declared |= {n for extra in PROJECT["optional-dependencies"].values() for n in extra}
    left_out = {name for name in declared if name.startswith("torch>=")}
    assert declared - left_out <= set(asked)


def test_updating_keeps_the_files_form_and_leaves_gpu_builds_out(update):
    found = {
        "torch": "2.13.0+cpu", "nvidia-cublas-cu12": "12.8", "nvidia_nccl": "2", "triton": "3.4",
        "Jinja2": "3.1.6", "ast_serialize": "0.1", "jsonschema": "4.26.0",
        "jsonschema-specifications": "2025.9.1",
    }  # fmt: skip
    report = {"install": [{"metadata": {"name": n, "version": v}} for n, v in found.items()]}
    first, *lines = update.constraints(report).splitlines()
    assert first == (ROOT / "constraints.txt").read_text().splitlines()[0]
    assert lines == [
        "ast_serialize==0.1", "Jinja2==3.1.6", "jsonschema-specifications==2025.9.1",
        "jsonschema==4.26.0", "torch==2.13.0",
    ]  # fmt: skip


def test_the_present_file_is_in_the_form_that_updating_writes(update):
    head, *lines = (ROOT / "constraints.txt").read_text().splitlines()
    packages = [line.split("==") for line in lines]
    report = {"install": [{"metadata": {"name": n, "version": v}} for n, v in packages]}
    assert update.constraints(report).splitlines() == [head, *lines]
