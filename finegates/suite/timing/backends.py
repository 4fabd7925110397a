"""Functions that run a model once, by backend: eager, compiled, int8, ONNX Runtime."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

Shape = tuple[int, int, bool]


def runner(
    model: nn.Module, shape: Shape, backend: str, threads: int, folder: Path
) -> Callable[[], object] | None:
    """A function that runs the model once, None if the backend does not work here.

    Args:
        model: any of the timed ones, in evaluation mode.
        shape: batch, length, and whether one token is decoded after a cached prompt.
        backend: of ``InferenceBenchmark.backends``, or ``onednn``.
        threads: of ONNX Runtime.
        folder: for exported graphs.
    """
    batch, length, decode = shape
    inputs = random_inputs(model, batch, length)
    if decode:
        return _decoder(model, inputs)
    if backend in ("eager", "onednn"):
        return lambda: model(**inputs)
    try:
        if backend == "compile":
            compiled = torch.compile(model, dynamic=False)
            compiled(**inputs)
            return lambda: compiled(**inputs)
        if backend == "torchao":
            quantised = _in_int8(model)
            return lambda: quantised(**inputs)
        return _onnx_runner(model, inputs, backend == "int8", threads, folder)
    except Exception as error:  # no compiler, an unsupported operator, a missing package
        warnings.warn(f"{backend} is left out: {type(error).__name__}: {error}", stacklevel=2)
        return None


def random_inputs(model: nn.Module, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Random token ids and a mask of ones, each (batch, length)."""
    vocabulary: int = model.config.vocab_size  # type: ignore[union-attr, assignment]
    return {
        "input_ids": torch.randint(5, vocabulary, (batch, length)),
        "attention_mask": torch.ones(batch, length, dtype=torch.long),
    }


def _decoder(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Callable[[], object]:
    """A function that decodes one token after a cached prompt."""
    from transformers import DynamicCache

    # A classifier's head pools over positions, so the base model decodes.
    base: nn.Module = model.base_model  # type: ignore[assignment]
    cache = DynamicCache(config=model.config)  # type: ignore[arg-type]
    base(input_ids=inputs["input_ids"], past_key_values=cache, use_cache=True)
    token = inputs["input_ids"][:, :1]

    def run() -> object:
        output = base(input_ids=token, past_key_values=cache, use_cache=True)
        cache.crop(-1)
        return output

    return run


def _in_int8(model: nn.Module) -> nn.Module:
    """A copy with the weights of all linear layers in int8, one scale for each row."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = copy.deepcopy(model)
    quantize_(model, Int8WeightOnlyConfig())
    return model


def _onnx_runner(
    model: nn.Module, inputs: dict[str, torch.Tensor], int8: bool, threads: int, folder: Path
) -> Callable[[], object]:
    import onnxruntime

    from finegates.formats.onnx import export_onnx

    path = folder / f"{id(model)}.onnx"
    if not path.exists():
        batch, length = (max(2, size) for size in inputs["input_ids"].shape)
        with torch.inference_mode(mode=False):
            inputs = random_inputs(model, batch, length)
            export_onnx(model, path, inputs, tolerance=1e-2, gated=True)
    if int8:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantised = path.with_suffix(".int8.onnx")
        if not quantised.exists():
            graph = onnx.load(path)
            # The exporter and the quantiser may name dynamic sizes of intermediate values
            # differently. Without the exporter's shapes, all of them are inferred again.
            del graph.graph.value_info[:]
            quantize_dynamic(graph, quantised, weight_type=QuantType.QInt8)
        path = quantised
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {name: tensor.numpy() for name, tensor in inputs.items()}
    return lambda: session.run(None, feeds)
