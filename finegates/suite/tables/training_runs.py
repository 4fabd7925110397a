"""The table of whole training runs: gates, LoRA and full fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from finegates.suite.config.tier import Tier
from finegates.suite.timing.control import CONTROL, is_noisy, load_note

_HEADER = (
    "| model | contender | MACs kept (%) | trained parameters | time (s) | quartiles | "
    "time / LoRA | memory at the end (MiB) |"
)


def training_runs_text(frame: pd.DataFrame, tier: Tier, machine: Mapping[str, Any]) -> str:
    """The table as Markdown, with the machine and its load.

    Args:
        frame: rows of :func:`finegates.suite.timing.training_runs.time_training_runs`.
        tier: tier whose ``training_benchmark`` was timed.
        machine: see ``finegates.suite.runs.machine.hardware``, with ``load``.
    """
    settings = tier.training_benchmark
    assert settings is not None
    controls = frame[frame["contender"] == CONTROL]
    noisy = [row["model"] for _, row in controls.iterrows() if is_noisy(row["ratio_to_lora"])]
    words = (
        f"Whole training runs of {settings.steps} steps, batch {settings.batch_size} x "
        f"{settings.length}, {tier.training.precision}, on {machine['cpu']} "
        f"({machine['threads']} threads); medians over {settings.repeats} interleaved rounds. "
        f"Token ids are random, and LoRA has rank {settings.rank}. Gates train next to frozen "
        "weights; MACs are those of the compact model at the end. Memory is what parameters and "
        "optimizer hold after the last step, and a further step at its peak. The control is LoRA's "
        f"run a second time. {load_note(machine)}"
    )
    if noisy:
        words += (
            f"Noisy: the control of {', '.join(noisy)} is off by more than 5 %, so no ratio of it "
            "counts. "
        )
    lines = [_HEADER, "|---|---|---:|---:|---:|---:|---:|---:|"]
    for _, row in frame.iterrows():
        lines.append(
            f"| {row['model']} | {row['contender']} | {100 * row['macs_kept']:.1f} | "
            f"{int(row['trainable']):,} | {row['seconds']:.2f} | {row['q25']:.2f} to "
            f"{row['q75']:.2f} | {row['ratio_to_lora']:.2f} | {row['end_mib']:.1f} |"
        )
    return f"{words.rstrip()}\n\n" + "\n".join(lines) + "\n"
