"""The trained weights that a run keeps for later runs and for timings."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_model, save_model
from torch import nn

from finegates.files import whole_file
from finegates.formats.task import load_task, save_task


def write_trained(model: nn.Module, path: str | Path, *, whole: bool) -> None:
    """Saves the trained weights of a run (safetensors), atomically.

    Args:
        model: the trained model.
        path: file to write.
        whole: save all weights; otherwise the encoder was frozen and only the weights of the task
            are saved (``finegates.save_task``).
    """
    if not whole:
        save_task(model, path)
        return
    with whole_file(path) as aside:
        save_model(model, str(aside))


def read_trained(model: nn.Module, path: str | Path, *, whole: bool) -> None:
    """Loads a file of :func:`write_trained` into an equally prepared model."""
    if whole:
        load_model(model, path)
    else:
        load_task(model, path)
