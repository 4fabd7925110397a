"""The table of times of deployed models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from finegates.suite.config.tier import Tier
from finegates.suite.tables.render import Column, Table, decimals, percent
from finegates.suite.timing.control import CONTROL, is_noisy, load_note


def times_table(frame: pd.DataFrame, tier: Tier, machine: Mapping[str, Any]) -> Table:
    """The table of measured times from the frame of :func:`time_deployed`."""
    assert tier.studies is not None
    studies = tier.studies
    # Titles come from the current configuration, not from the time of the measurement.
    known = {label: method.title for label, method in tier.all_methods.items()}
    words = [known.get(m, t) for m, t in zip(frame["method"], frame["title"], strict=True)]
    frame = frame.assign(title=words)
    control = frame[frame["method"] == CONTROL]
    mark = " (noisy)" if any(map(is_noisy, control["ratio_to_dense"])) else ""
    columns = (
        Column("Model", "title", text=True),
        Column("Median (ms)", "median_ms", decimals(2)),
        Column("Quartiles (ms)", lambda row: f"{row['q25_ms']:.2f} to {row['q75_ms']:.2f}"),
        Column("To dense (%)", "ratio_to_dense", lambda x: f"{percent(x)}{mark}"),
    )
    caption = (
        f"Forward passes of what a run left to deploy, {studies.batch} × {studies.length} random "
        f"tokens, float32, eager; medians of {studies.repeats} interleaved rounds on "
        f"{machine['cpu']}, {machine['threads']} threads. {load_note(machine)}"
        f"Tier {tier.tier}: {tier.description}. "
        "The models are small: a fixed part of the time does not shrink with the products."
    )
    return Table(
        name="study-times",
        title=f"Time of what is deployed (tier {tier.tier})",
        caption=caption,
        numbers=frame,
        columns=columns,
        rows=frame.to_dict("records"),
    )
