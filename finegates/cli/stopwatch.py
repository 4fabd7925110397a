"""What ``finegates bench`` times: forward passes, and a dense model of the same sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn


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


def dense_twin(model: Any) -> nn.Module:
    """A dense model of the same class and configuration with random weights, which take as long to
    multiply as trained ones; on the CPU, in evaluation mode."""
    twin: nn.Module = type(model)(model.config)
    return twin.eval()
