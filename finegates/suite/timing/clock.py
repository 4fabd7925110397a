"""Ratios of interleaved time measurements."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from finegates.clock import quartiles


def ratios(seconds: Mapping[str, np.ndarray], to: str) -> pd.DataFrame:
    """Median, quartiles (ms) and ratio to the median of ``to``."""
    rows = []
    for name, values in seconds.items():
        low, median, high = quartiles(values)
        rows.append(
            {
                "contender": name,
                "median_ms": 1e3 * median,
                "q25_ms": 1e3 * low,
                "q75_ms": 1e3 * high,
                f"ratio_to_{to}": median / np.median(seconds[to]),
            }
        )
    return pd.DataFrame(rows)
