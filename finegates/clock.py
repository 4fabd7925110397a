"""Interleaved timing of several functions on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from tqdm import tqdm

WARMUP = 3
"""Rounds that are discarded."""


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, np.ndarray]:
    """Times functions in turn, round after round, to share the machine's drift.

    Args:
        contenders: functions to time, by name.
        rounds: measured rounds, after :data:`WARMUP` discarded ones.

    Returns:
        seconds by contender, shape (rounds,).
    """
    seconds = {name: np.empty(rounds) for name in contenders}
    for turn in tqdm(range(-WARMUP, rounds), desc="timing", leave=False, disable=None):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn >= 0:
                seconds[name][turn] = time.perf_counter() - start
    return seconds


def quartiles(values: np.ndarray) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(low), float(middle), float(high)
