"""Compact models as ONNX graphs, checked against ONNX Runtime when they are written."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from finegates.layers import gated_layers


class OnnxExportError(RuntimeError):
    """The graph could not be made, or computes something else; says which model and why."""


@torch.no_grad()
def export_onnx(
    model: nn.Module, path: str | Path, inputs: Mapping[str, Tensor], *, tolerance: float = 1e-4
) -> float:
    """Writes a model as an ONNX graph whose batch and length are free, and checks it.

    The graph takes the named inputs and gives ``output``: logits, or the last hidden state of a
    model without a head; keys and values are not cached. It appears at ``path`` only after ONNX
    Runtime computed the model's output from it, for ``inputs`` and for a part of them.

    Args:
        model: compact or dense, float32, on the CPU.
        path: the file, by custom with the suffix ``.onnx``.
        inputs: example inputs, (batch, length) each, at least 2 x 2.
        tolerance: largest absolute difference of outputs that passes.

    Returns:
        the largest difference seen.

    Raises:
        ValueError: the model has gates, or an input is not of two dimensions.
        ImportError: the packages of the extra ``onnx`` are missing.
        OnnxExportError: torch cannot make the graph, or its outputs differ by more than
            ``tolerance``.
    """
    if gated_layers(model):
        raise ValueError("the model has gates; compact it first")
    for name, tensor in inputs.items():
        if tensor.ndim != 2 or min(tensor.shape) < 2:
            raise ValueError(f"input {name!r} must be at least 2 x 2, got {tuple(tensor.shape)}")
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ImportError(f"{error}; install it with pip install 'finegates[onnx]'") from error

    names = list(inputs)
    plain = _OutputOnly(model, names).eval()
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        program = torch.onnx.export(
            plain,
            tuple(inputs.values()),
            dynamo=True,
            # One pattern for the one variadic argument.
            dynamic_shapes=(tuple(free for _ in names),),
            input_names=names,
            output_names=["output"],
            verbose=False,
        )
    except Exception as error:  # the exporter raises many kinds
        raise OnnxExportError(
            f"torch.onnx cannot export this {type(model).__name__}: {type(error).__name__}: {error}"
        ) from error
    assert program is not None
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        aside = Path(folder) / path.name
        program.save(str(aside), external_data=False)
        session = onnxruntime.InferenceSession(str(aside), providers=["CPUExecutionProvider"])
        worst = 0.0
        for part in (inputs, {name: tensor[:1, :-1] for name, tensor in inputs.items()}):
            expected = plain(*part.values())
            feeds = {name: tensor.contiguous().numpy() for name, tensor in part.items()}
            (found,) = session.run(None, feeds)
            worst = max(worst, float((torch.from_numpy(found) - expected).abs().max()))
        if not worst <= tolerance:
            raise OnnxExportError(
                f"{path}: ONNX Runtime differs from the model by {worst:.2e}, more than "
                f"{tolerance:.0e}; nothing was written"
            )
        os.replace(aside, path)
    return worst


class _OutputOnly(nn.Module):
    """A model as a function of tensors in order, to one tensor."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names
        cached = hasattr(getattr(model, "config", None), "use_cache")
        takes = inspect.signature(model.forward).parameters.values()
        cached = cached and any(p.name == "use_cache" or p.kind is p.VAR_KEYWORD for p in takes)
        self.options = {"use_cache": False} if cached else {}

    def forward(self, *tensors: Tensor) -> Tensor:
        result = self.model(**dict(zip(self.names, tensors, strict=True)), **self.options)
        output: Tensor = result.logits if "logits" in result else result.last_hidden_state
        return output
