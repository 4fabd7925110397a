"""Times of models on this machine: in turn, so that its drift meets all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

WARMUP = 3
"""Rounds that do not count."""


def interleaved(
    contenders: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, np.ndarray]:
    """Times contenders in turn, round after round.

    Args:
        contenders: by name, what to time.
        rounds: that count, after :data:`WARMUP` that do not.

    Returns:
        seconds by contender, (rounds,).
    """
    seconds = {name: np.empty(rounds) for name in contenders}
    for turn in tqdm(range(-WARMUP, rounds), desc="timing", leave=False, disable=None):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn >= 0:
                seconds[name][turn] = time.perf_counter() - start
    return seconds


def forward_pass(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Callable[[], None]:
    """A forward pass in evaluation mode without gradients, finished when it returns.

    Args:
        model: any, on one device.
        inputs: of it, on the same device.
    """

    def run() -> None:
        with torch.inference_mode():
            model(**inputs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    model.eval()
    return run


def quartiles(values: np.ndarray) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return float(low), float(middle), float(high)


def dense_twin(model: Any) -> nn.Module:
    """A dense model of the same class and configuration with random weights, which take as long to
    multiply as trained ones; on the CPU, in evaluation mode."""
    twin: nn.Module = type(model)(model.config)
    return twin.eval()
