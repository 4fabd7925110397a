"""Forward passes for ``finegates bench``, and a dense twin of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn


def forward_pass(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Callable[[], None]:
    """Makes a synchronous forward pass in evaluation mode, without gradients.

    Args:
        model: any, on one device.
        inputs: of the model, on the same device.
    """

    def run() -> None:
        with torch.inference_mode():
            model(**inputs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    model.eval()
    return run


def dense_twin(model: Any) -> nn.Module:
    """A dense model of the same class and configuration with random weights.

    Random weights take as long to multiply as trained ones. It is on the CPU, in evaluation mode.
    """
    twin: nn.Module = type(model)(model.config)
    return twin.eval()
