"""The table of models that were pruned to a time: wanted, predicted, measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from finegates.suite.config.tier import Tier
from finegates.suite.timing.control import CONTROL, is_noisy, load_note

GOAL = 0.05
"""Largest relative difference of the measured time from the wanted one that meets it."""

_HEADER = (
    "| model | contender | wanted | predicted | measured | off by (%) | time (ms) | quartiles |"
)


def time_budgets_text(frame: pd.DataFrame, tier: Tier, machine: Mapping[str, Any]) -> str:
    """The table as Markdown, with the machine and its load.

    Args:
        frame: rows of :func:`finegates.suite.timing.time_budgets.time_budgets`.
        tier: tier whose ``time_budget_benchmark`` was timed.
        machine: see ``finegates.suite.runs.machine.hardware``, with ``load``.
    """
    settings = tier.time_budget_benchmark
    assert settings is not None
    controls = frame[frame["contender"] == CONTROL]
    noisy = [row["model"] for _, row in controls.iterrows() if is_noisy(row["measured"])]
    pruned = frame[(frame["wanted"] < 1.0) & frame["measured"].notna()]
    met = int((pruned["off"].abs() <= GOAL).sum())
    words = (
        f"Models pruned to a wanted time and compacted, batch {settings.batch_size} x "
        f"{settings.length}, on {machine['cpu']} ({machine['threads']} threads); medians over "
        f"{settings.repeats} interleaved rounds. Times are fractions of the dense model's; the "
        f"control is the dense model a second time. {met} of {len(pruned)} are within "
        f"{100 * GOAL:.0f} % of the wanted time. {load_note(machine)}"
    )
    if noisy:
        words += (
            f"Noisy: the control of {', '.join(noisy)} is off by more than 5 %, so no ratio of it "
            "counts. "
        )
    if frame["measured"].isna().any():
        words += "Rows without a measured time want less than gates can reach, which is predicted. "
    lines = [_HEADER, "|---|---|---:|---:|---:|---:|---:|---:|"]
    for _, row in frame.iterrows():
        start = f"| {row['model']} | {row['contender']} | {row['wanted']:.2f} | "
        start += f"{row['predicted']:.3f} | "
        if pd.isna(row["measured"]):
            lines.append(f"{start}– | – | – | – |")
            continue
        lines.append(
            f"{start}{row['measured']:.3f} | {100 * row['off']:+.1f} | "
            f"{row['median_ms']:.1f} | {row['q25_ms']:.1f} to {row['q75_ms']:.1f} |"
        )
    return f"{words.rstrip()}\n\n" + "\n".join(lines) + "\n"
