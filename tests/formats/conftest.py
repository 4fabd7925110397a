"""Fixtures: a folder with a small compact model, written once and copied for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from finegates.formats.compact import save
from support.saved import small_model


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "small"
    save(small_model(), folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "small")
