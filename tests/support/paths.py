"""Paths of the repository and of its data."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
"""Real data and checkpoints, not part of the repository; tests are skipped without them."""
