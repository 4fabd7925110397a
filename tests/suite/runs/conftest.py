"""Fixtures: the files that runs on plain text start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.causal_tier import causal_tier


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("causal")
    causal_tier(path)  # writes the files with which every test may start
    return path
