"""Measures the cost model of this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from finegates.clock import interleaved
from finegates.compaction.cost import CostModel
from finegates.compaction.measured_model import (
    Shape,
    activation_run,
    attention_run,
    check_measurable,
    example_tokens,
    fitted_to_model,
    model_shape,
    nonnegative,
)
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.kernels import has_onednn, onednn_linear, select_columns

# Seconds of a kind of work that was too fast to be measured.
_LEAST = 1e-15


def calibrate(
    model: nn.Module | None = None,
    *,
    batch: int = 8,
    length: int = 128,
    inputs: Mapping[str, Any] | None = None,
    width: int = 768,
    tokens: int = 1024,
    repeats: int = 30,
    dtype: torch.dtype = torch.float32,
    onednn: bool = True,
) -> CostModel:
    """Measures this machine's costs with torch's current number of threads.

    Without a model it takes a few seconds and measures the kinds of work one by one. With a model
    it also runs the model, and two compact forms of it with random dimensions removed, and fits the
    costs to these times (:mod:`finegates.compaction.measured_model`): the time of what no gate
    touches is then known, and a budget on time (``GateConfig.target_time``) is met.

    Args:
        model: dense, of an architecture with an adapter, on the CPU; it does not change.
        batch: sequences of a forward pass of the model.
        length: tokens of each.
        inputs: keyword arguments of the model's forward for such a batch; by default random tokens.
        width: inputs and outputs of the measured layer; a model has its own.
        tokens: rows of its input; with a model ``batch * length``.
        repeats: rounds, of which the medians are used.
        dtype: of the layer; a model has its own.
        onednn: also try oneDNN's matmul in float32; otherwise torch's default is always used.

    Raises:
        ValueError: the model is not on the CPU, has gates, is compact already, has no adapter, or
            reads other inputs than tokens.
    """
    if model is not None:
        check_measurable(model)
        shape = model_shape(model)
        dtype, width, tokens = shape.dtype, shape.hidden, batch * length
    else:
        shape = Shape(dtype, width, 4 * width, max(1, width // 64), min(64, width))
    cost = _basic(width, tokens, repeats, dtype, onednn)
    cost = _with_layers(cost, shape, tokens, repeats)
    cost = _with_attention(cost, shape, max(1, tokens // length), min(length, tokens), repeats)
    if model is None:
        return cost
    found = example_tokens(model, batch, length) if inputs is None else dict(inputs)
    return fitted_to_model(replace(cost, length=length), model, found, length, repeats)


def _basic(width: int, tokens: int, repeats: int, dtype: torch.dtype, onednn: bool) -> CostModel:
    """Costs of matmuls of a square layer, of gathers and of scatters."""
    half = width // 2
    here: dict[str, Any] = {"dtype": dtype, "device": "cpu"}
    x, weight = torch.randn(tokens, width, **here), torch.randn(width, width, **here)
    kept = torch.arange(0, width, 2, device="cpu")[:half]
    slots = torch.full((width,), half, dtype=torch.int64, device="cpu").index_copy_(
        0, kept, torch.arange(half, device="cpu")
    )
    with torch.inference_mode():
        y = x[:, :half].contiguous()
        room = torch.zeros(tokens, half + 1, **here)
        product = _median(lambda: torch.nn.functional.linear(x, weight), repeats)
        onednn_from = None
        if onednn and dtype == torch.float32 and has_onednn():
            onednn_from = _onednn_from(x, weight, repeats)
        few = kept[: max(1, half // 8)]
        sizes = {kept.numel(): kept, few.numel(): few}
        times = [_median(partial(select_columns, x, index), repeats) for index in sizes.values()]
        gather, move = nonnegative(
            np.array([[size, 1.0] for size in sizes], dtype=np.float64), np.array(times) / tokens
        )
        scatter = _median(lambda: select_columns(room, slots), repeats) - move * tokens
        if onednn_from is not None:
            product = _median(lambda: onednn_linear(x, weight, None), repeats)
            scatter += _median(lambda: room[:, :half].copy_(y), repeats)
    return CostModel(
        product=max(_LEAST, product / (tokens * width * width)),
        gather=max(_LEAST, gather),
        scatter=max(_LEAST, scatter / (tokens * width)),
        move=move,
        onednn_from=onednn_from,
        head_multiple=_head_multiple(tokens, repeats, dtype),
        dtype=str(dtype).removeprefix("torch."),
        device="cpu",
    )


def _with_layers(cost: CostModel, shape: Shape, tokens: int, repeats: int) -> CostModel:
    """Fits the costs of products, outputs, inputs and layers to layers of several sizes.

    Sizes are those of attention and feed-forward layers, whole and with some dimensions gone, which
    are not multiples of the vectors of a processor.
    """
    sides = {shape.hidden, shape.intermediate}
    pairs = [(o, i) for o in sides for i in sides if (o, i) != (shape.intermediate,) * 2]
    sizes = [
        (max(1, round(o * a)), max(1, round(i * b)))
        for o, i in pairs
        for a, b in ((1.0, 1.0), (0.71, 0.83), (0.43, 0.57), (0.57, 0.29), (0.29, 0.91))
    ]
    runs: dict[str, Callable[[], object]] = {}
    work: list[tuple[int, ...]] = []
    for outputs, columns in sizes:
        weight = torch.randn(outputs, columns, dtype=shape.dtype, device="cpu")
        layer = CompactLinear(weight, torch.zeros(outputs, dtype=shape.dtype, device="cpu"))
        layer.onednn_from = cost.onednn_from
        x = torch.randn(tokens, columns, dtype=shape.dtype, device="cpu")
        runs[f"{len(runs)}: {outputs} x {columns}"] = partial(layer, x)
        work.append((outputs * columns, outputs, columns, 1))
    product, output, read, each = _fitted(runs, work, tokens, max(3, repeats // 3))
    return replace(cost, product=max(_LEAST, product), output=output, input=read, layer=each)


def _with_attention(
    cost: CostModel, shape: Shape, batch: int, length: int, repeats: int
) -> CostModel:
    """Fits the costs of attention to fewer and narrower heads, and measures the activation."""
    runs: dict[str, Callable[[], object]] = {}
    work: list[tuple[int, int]] = []
    multiple = cost.head_multiple
    for part in (1.0, 0.58, 0.34):
        for share in (1.0, 0.5):
            heads = max(1, round(part * shape.heads))
            width = max(1, round(share * shape.head_dim / multiple)) * multiple
            run = attention_run(shape, batch, length, heads, width)
            runs[f"{len(runs)}: {heads} of {width}"] = run
            work.append((2 * heads * width * length, heads * length))
    tokens = batch * length
    attention, score = _fitted(runs, work, tokens, max(3, repeats // 3))
    activation = _median(activation_run(shape, tokens), max(3, repeats // 3))
    return replace(
        cost,
        attention=max(_LEAST, attention),
        score=score,
        activation=activation / (tokens * shape.intermediate),
    )


def _fitted(
    runs: Mapping[str, Callable[[], object]],
    work: Sequence[tuple[float, ...]],
    tokens: int,
    repeats: int,
) -> list[float]:
    """Seconds of each kind of work of one token, from functions that do several kinds.

    Args:
        runs: functions by name.
        work: of each of them, the amounts of work of one token.
        tokens: that a function works on.
        repeats: interleaved rounds.
    """
    with torch.inference_mode():
        seconds = interleaved(runs, repeats)
    times = np.array([float(np.median(seconds[name])) for name in runs]) / tokens
    return nonnegative(np.array(work, dtype=np.float64), times)


def _head_multiple(tokens: int, repeats: int, dtype: torch.dtype) -> int:
    """8, the size of a vector, if attention is faster with heads of 48 than of 45."""
    heads, length = 12, min(tokens, 128)

    def attend(width: int) -> float:
        shape = (max(tokens // length, 1), length, heads, width)
        q, k, v = (torch.randn(shape, dtype=dtype, device="cpu").transpose(1, 2) for _ in range(3))
        attention = torch.nn.functional.scaled_dot_product_attention
        return _median(lambda: attention(q, k, v), repeats)

    with torch.inference_mode():
        return 8 if attend(48) < attend(45) else 1


def _onednn_from(x: torch.Tensor, weight: torch.Tensor, repeats: int) -> int | None:
    """The smallest power of four of rows from which oneDNN is always faster."""
    first, rows = None, x.shape[0]
    while rows >= 1:
        part = x[:rows]
        default = _median(lambda: torch.nn.functional.linear(part, weight), repeats)  # noqa: B023
        other = _median(lambda: onednn_linear(part, weight, None), repeats)  # noqa: B023
        if other > 0.95 * default:
            break
        first, rows = rows, rows // 4
    return first


def _median(run: Callable[[], object], repeats: int) -> float:
    seconds = []
    for turn in range(-3, repeats):
        start = time.perf_counter()
        run()
        if turn >= 0:
            seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))
