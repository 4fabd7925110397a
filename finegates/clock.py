"""Times of several contenders on this machine, taken in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np
from tqdm import tqdm

WARMUP = 3
"""Rounds that do not count."""


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, np.ndarray]:
    """Times contenders in turn, round after round, so that drift of the machine hits all alike.

    Args:
        contenders: by name, what to time.
        rounds: that count, after :data:`WARMUP` that do not.

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
    """The lower quartile, the median and the upper quartile."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(low), float(middle), float(high)
