"""The table of training-step times of a Llama."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from finegates.suite.config.llama_runs import study
from finegates.suite.config.tier import Tier
from finegates.suite.tables.llama_rows import group_starts
from finegates.suite.tables.render import BLANK, Column, Table
from finegates.suite.timing.control import CONTROL, is_noisy
from finegates.suite.timing.llama_step import LORA_RANK

_CONTROLLED = (
    "The control is the step that ratios are to, a second time: where it is off by more than 5 %, "
    "times are noisy, and no limit is judged. "
)


def step_table(frame: pd.DataFrame, tier: Tier, machine: Mapping[str, Any]) -> Table:
    """The printed form of :func:`time_llama_steps`."""
    settings = study(tier).step_benchmark
    control = frame[frame["contender"] == CONTROL].to_dict("records")
    noisy = {row["experiment"] for row in control if is_noisy(row["time_ratio"])}

    def ratio(row: Any, kind: str) -> str:
        limit = row[f"{kind}_limit"]
        value = f"{row[f'{kind}_ratio']:.3f}"
        if kind == "time" and row["experiment"] in noisy:
            return f"{value} (noisy)"
        if pd.isna(limit):
            return value
        return f"{value} (limit {limit:g}: {'met' if row[f'{kind}_ratio'] <= limit else 'missed'})"

    caption = (
        f"Forward, loss with penalty, backward, optimizer step on {settings.batch_size} sequences "
        f"of {settings.length} random tokens, float32, {machine['cpu']} ({machine['threads']} "
        f"threads); medians of {settings.repeats} interleaved rounds. Ratios are to LoRA of rank "
        f"{LORA_RANK}, in pretraining to the dense model. "
        f"{_CONTROLLED if control else ''}Memory: all tensors at the peak of a "
        f"step, weights and optimizer state included. Tier {tier.tier}: {study(tier).description}."
    )
    return Table(
        name="llama-step",
        title=f"Training steps of Llama (tier {tier.tier})",
        caption=caption,
        numbers=frame,
        columns=(
            Column("Experiment, contender", "{0[experiment]}, {0[contender]}".format, text=True),
            Column("Step (ms)", "median_ms", "{:.1f}".format),
            Column("Quartiles", "{0[q25_ms]:.1f}–{0[q75_ms]:.1f}".format),
            Column("Time", lambda row: ratio(row, "time")),
            Column("Peak (MiB)", "peak_mib", lambda x: BLANK if pd.isna(x) else f"{x:.1f}"),
            Column("Memory", lambda row: ratio(row, "memory")),
        ),
        rows=frame.to_dict("records"),
        rule_before=group_starts(list(frame["experiment"])),
    )
