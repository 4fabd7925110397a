"""Fixtures: a tiny encoder and a table to train it on."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.cli_models import checkpoint, reviews, write_csv


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny encoder and a table of reviews in which any word determines the label."""
    folder = tmp_path_factory.mktemp("shrink")
    return {
        "model": checkpoint(folder / "model"),
        "train": write_csv(folder / "reviews.csv", reviews()),
    }
