"""Times the steps of training runs."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from transformers import TrainerCallback


class StepTimer(TrainerCallback):
    """Wall time of training steps, without evaluation and data loading."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops it."""
        self._seconds.append(time.perf_counter() - self._start)

    def median(self) -> float:
        """Median time of a step, in seconds."""
        return float(np.median(self._seconds))
