"""ONNX export of compact models, checked against ONNX Runtime."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finegates.extras import needed_for
from finegates.formats.onnx_messages import without_messages_of_torch
from finegates.gates.gated_linear import gated_layers
from finegates.modules.experts import experts_computed_by
from finegates.wrappers import autocast_removed, without_containers

OUTPUT = "output"
LARGEST_FILE = 1536 * 2**20
"""Bytes of weights beyond which they get their own file.

A graph in one file may have at most 2 GiB (protobuf), and torch always writes two files beyond this
size.
"""


class OnnxExportError(RuntimeError):
    """The graph could not be made, or its outputs differ from the model's."""


@torch.no_grad()
def export_onnx(
    model: nn.Module,
    path: str | Path,
    inputs: Mapping[str, Tensor],
    *,
    tolerance: float = 1e-4,
    gated: bool = False,
) -> float:
    """Exports a model as a checked ONNX graph with dynamic batch and length.

    The graph maps the named inputs to ``output``: logits, or the last hidden state of a model
    without a head; keys and values are not cached. It appears at ``path`` only after ONNX Runtime
    reproduced the model's output, for ``inputs`` and for a part of them.

    Weights of more than 1.5 GiB (:data:`LARGEST_FILE`) are stored next to the graph, in ``<name of
    the graph>.data`` (``model.onnx.data``), which must stay there. Both files appear after the
    check, the graph last. An earlier export at ``path`` is replaced, weights included.

    Messages of torch's exporter are shown only if the logger ``finegates`` has the level DEBUG.

    Args:
        model: compact or dense, float32, on the CPU. The autocast that mixed-precision training
            leaves on it is not exported. Stacked experts are multiplied in one batch.
        path: the file, usually with the suffix ``.onnx``.
        inputs: example inputs on the CPU, with a batch of at least 2: token ids, masks or waves
            (batch, length), of any length of at least 2, or others (batch, ...), such as images, of
            that size alone.
        tolerance: largest accepted absolute difference of outputs.
        gated: accept a model with gates, too. They become factors in the graph, so nothing gets
            smaller; for comparisons.

    Returns:
        the largest absolute difference of outputs.

    Raises:
        ValueError: the model has gates and ``gated`` is not set; it is not float32 on the CPU; or
            an input is too small or not on the CPU.
        ImportError: the packages of the extra ``onnx`` are missing.
        OnnxExportError: the model returns neither logits nor a last hidden state, torch cannot make
            the graph, ONNX Runtime cannot run it, or its output differs from the model's in shape
            or by more than ``tolerance``, or is not finite.
    """
    if gated_layers(model) and not gated:
        raise ValueError("the model has gates; compact it first")
    _check_precision(model)
    for name, tensor in inputs.items():
        if tensor.ndim < 2 or min(tensor.shape[:1] if tensor.ndim > 2 else tensor.shape) < 2:
            raise ValueError(f"input {name!r} must be at least 2 x 2, got {tuple(tensor.shape)}")
        if tensor.device.type != "cpu":
            raise ValueError(
                f"input {name!r} is on {tensor.device}; move it to the CPU with .cpu()"
            )
    with needed_for("finegates.export_onnx", "onnx"):
        import onnxruntime  # noqa: F401  wanted below
        import onnxscript  # noqa: F401  torch's exporter needs it

    model = without_containers(model)
    path = Path(path)
    # One batch of products is what graphs can hold.
    with autocast_removed(model), experts_computed_by(model, "batched_mm"):
        plain = _OutputOnly(model, list(inputs)).eval()
        program = _exported(plain, inputs)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            aside = Path(folder) / path.name
            worst = _write_and_check(program, aside, path, plain, inputs, tolerance)
            _put_in_place(aside, path)
    return worst


def _check_precision(model: nn.Module) -> None:
    """Raises ValueError unless all tensors are float32 on the CPU."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        wrong_type = tensor.is_floating_point() and tensor.dtype != torch.float32
        if wrong_type or tensor.device.type != "cpu":
            raise ValueError(
                f"{name} is {tensor.dtype} on {tensor.device}, but graphs are made and checked in "
                "float32 on the CPU; export model.float().cpu()"
            )


def _exported(plain: _OutputOnly, inputs: Mapping[str, Tensor]) -> Any:
    """torch's ONNX program of the model with dynamic batch and length."""
    free = torch.export.Dim.DYNAMIC
    shapes = tuple(
        {0: free, 1: free} if tensor.ndim == 2 else {0: free} for tensor in inputs.values()
    )
    try:
        with torch.no_grad():
            plain(
                *inputs.values()
            )  # errors of the model or its inputs, before those of the exporter
        with without_messages_of_torch():
            program = torch.onnx.export(
                plain,
                tuple(inputs.values()),
                dynamo=True,
                # One pattern for the one variadic argument.
                dynamic_shapes=(shapes,),
                input_names=list(inputs),
                output_names=[OUTPUT],
                verbose=False,
            )
    except Exception as error:  # the exporter raises many classes
        raise OnnxExportError(
            f"torch.onnx cannot export this {type(plain.model).__name__}: "
            f"{type(error).__name__}: {error}"
        ) from error
    assert program is not None
    return program


def _write_and_check(
    program: Any,
    aside: Path,
    path: Path,
    plain: _OutputOnly,
    inputs: Mapping[str, Tensor],
    tolerance: float,
) -> float:
    """Writes a program to ``aside`` and compares ONNX Runtime with the model.

    Returns:
        the largest absolute difference of outputs.

    Raises:
        OnnxExportError: it cannot be written or run, or its outputs differ.
    """
    import onnxruntime

    # Without the first token, because some heads read the last one, which ends a text.
    shorter = {name: t[:1, 1:] if t.ndim == 2 else t[:1] for name, t in inputs.items()}
    parts = (inputs, shorter)
    try:
        program.save(str(aside), external_data=_weights_size(program) > LARGEST_FILE)
        session = onnxruntime.InferenceSession(str(aside), providers=["CPUExecutionProvider"])
        results = []
        for part in parts:
            feeds = {name: tensor.contiguous().numpy() for name, tensor in part.items()}
            results.append(torch.from_numpy(session.run([OUTPUT], feeds)[0]))
    except OSError:  # for example a full disk, which is not the model's fault
        raise
    except Exception as error:  # protobuf and ONNX Runtime have their own classes
        raise OnnxExportError(
            f"{path}: the graph cannot be written, or ONNX Runtime cannot run it: "
            f"{type(error).__name__}: {error}; nothing was written"
        ) from error
    return max(
        _difference(found, plain(*part.values()), path, tolerance)
        for found, part in zip(results, parts, strict=True)
    )


def _weights_size(program: Any) -> int:
    """Bytes of the weights in the graph.

    A weight that two layers share may be in it twice, once transposed.
    """
    values = (value.const_value for value in program.model.graph.initializers.values())
    return sum(value.nbytes for value in values if value is not None)


def _difference(found: Tensor, expected: Tensor, path: Path, tolerance: float) -> float:
    """Largest difference of an output; raises OnnxExportError above the tolerance."""
    if found.shape != expected.shape:
        raise OnnxExportError(
            f"{path}: {OUTPUT!r} of ONNX Runtime has shape {tuple(found.shape)}, the model's "
            f"{tuple(expected.shape)}; nothing was written; use the model in torch"
        )
    if not expected.isfinite().all():
        raise OnnxExportError(
            f"{path}: the model's own {OUTPUT!r} is not finite, so the graph's cannot be compared "
            "with it; nothing was written; check the weights and the example inputs"
        )
    difference = float((found - expected).abs().max())
    # Also true for NaN.
    if not difference <= tolerance:
        raise OnnxExportError(
            f"{path}: {OUTPUT!r} of ONNX Runtime differs from the model's by {difference:.2e}, "
            f"more than {tolerance:.0e}; nothing was written; if this is rounding for this "
            "model, raise the tolerance, else use the model in torch"
        )
    return difference


def _put_in_place(new: Path, path: Path) -> None:
    """Moves a graph and its weights file, if any, to their destination.

    A single file replaces another atomically. Two files cannot: a process killed meanwhile leaves
    no graph rather than one with the wrong weights, an error restores the earlier files.
    """
    names = (path.name, f"{path.name}.data")
    if not any((folder / names[1]).is_file() for folder in (new.parent, path.parent)):
        os.replace(new, path)
        return
    earlier = new.parent / "earlier"
    earlier.mkdir()
    _move(names, path.parent, earlier)
    try:
        _move(names[::-1], new.parent, path.parent)
    except BaseException:
        _move(names, path.parent, new.parent)
        _move(names[::-1], earlier, path.parent)
        raise


def _move(names: tuple[str, ...], source: Path, target: Path) -> None:
    for name in names:
        if (source / name).is_file():
            os.replace(source / name, target / name)


class _OutputOnly(nn.Module):
    """A model as a function from tensors, in order, to one tensor."""

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
        for name in ("logits", "last_hidden_state"):
            if name in result:
                output: Tensor = result[name]
                return output
        raise ValueError(
            f"{type(self.model).__name__} returns {', '.join(result)}; only models that return "
            "logits or last_hidden_state can be exported"
        )
