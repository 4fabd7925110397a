"""Runs on plain text that tests train, by experiment and method."""

from __future__ import annotations

from finegates.suite.config.llama_runs import Run
from finegates.suite.config.tier import Tier
from finegates.suite.runs.llama_record import CausalRecord
from finegates.suite.runs.train_llama import train_run

GATES = Run("posttraining", "tiny", "reference", 0.4, 0)
SHARED = Run("posttraining", "tiny", "structured", 0.4, 0)
GATED = Run("pretraining", "tiny", "gated", 0.4, 0)
DENSE = Run("pretraining", "tiny", "dense", None, 0)


def trained(tier: Tier, run: Run) -> CausalRecord:
    record = train_run(tier, run, progress=False)
    assert record is not None
    return record
