"""Times of several contenders, taken in turn, and their ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from tqdm import tqdm


def interleaved(
    contenders: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 3
) -> dict[str, np.ndarray]:
    """Times contenders in turn, round after round, so that drift of the machine hits all alike.

    Args:
        contenders: by name, what to time.
        repeats: rounds that count.
        warmup: rounds before them that do not.

    Returns:
        seconds by contender, shape (repeats,).
    """
    seconds = {name: np.empty(repeats) for name in contenders}
    for turn in tqdm(range(-warmup, repeats), desc="timing", leave=False, disable=None):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn >= 0:
                seconds[name][turn] = time.perf_counter() - start
    return seconds


def ratios(seconds: Mapping[str, np.ndarray], to: str) -> pd.DataFrame:
    """Median and quartiles in ms of each contender, and the median's ratio to that of ``to``."""
    rows = []
    for name, values in seconds.items():
        low, median, high = np.percentile(values, [25, 50, 75])
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
