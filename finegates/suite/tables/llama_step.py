"""The table of times of a training step of a Llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from finegates.suite.config.llama_runs import study
from finegates.suite.config.tier import Tier
from finegates.suite.tables.render import BLANK, Table
from finegates.suite.timing.llama_step import (
    LORA_RANK,
)


def step_table(frame: pd.DataFrame, tier: Tier, machine: Mapping[str, Any]) -> Table:
    """The printed form of :func:`time_llama_steps`."""
    settings = study(tier).step_benchmark

    def ratio(row: Any, kind: str) -> str:
        limit = row[f"{kind}_limit"]
        value = f"{row[f'{kind}_ratio']:.3f}"
        if pd.isna(limit):
            return value
        return f"{value} (limit {limit:g}: {'met' if row[f'{kind}_ratio'] <= limit else 'missed'})"

    caption = (
        f"Forward, loss with penalty, backward, optimizer step on {settings.batch_size} sequences "
        f"of {settings.length} random tokens, float32, {machine['cpu']} ({machine['threads']} "
        f"threads); medians of {settings.repeats} interleaved rounds. Ratios are to LoRA of rank "
        f"{LORA_RANK}, in pretraining to the dense model. Memory: all tensors at the peak of a "
        f"step, weights and optimizer state included. Tier {tier.tier}: {study(tier).description}."
    )
    return Table(
        name="llama-step",
        title=f"Training steps of Llama (tier {tier.tier})",
        caption=caption,
        numbers=frame,
        header=("Experiment, contender", "Step (ms)", "Quartiles", "Time", "Peak (MiB)", "Memory"),
        cells=tuple(
            (
                f"{row['experiment']}, {row['contender']}",
                f"{row['median_ms']:.1f}",
                f"{row['q25_ms']:.1f}–{row['q75_ms']:.1f}",
                ratio(row, "time"),
                BLANK if pd.isna(row["peak_mib"]) else f"{row['peak_mib']:.1f}",
                ratio(row, "memory"),
            )
            for _, row in frame.iterrows()
        ),
        rule_before=tuple(
            i
            for i in range(1, len(frame))
            if frame["experiment"].iloc[i] != frame["experiment"].iloc[i - 1]
        ),
    )
