"""Measures the cost model of this machine."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from finegates.adapters import unwrap
from finegates.arguments import check_whole
from finegates.clock import interleaved
from finegates.compaction.cost import CostModel
from finegates.compaction.measured_batch import LENGTH, check_runs, measured_batch
from finegates.compaction.measured_model import (
    Shape,
    activation_run,
    attention_run,
    check_measurable,
    fitted_to_model,
    model_shape,
    nonnegative,
)
from finegates.compaction.merging import merged_copy
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.kernels import has_onednn, onednn_linear

# Seconds of a kind of work that was too fast to be measured.
_LEAST = 1e-15


def calibrate(
    model: nn.Module | None = None,
    *,
    batch: int | None = None,
    length: int | None = None,
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

    The random state of torch does not change.

    Args:
        model: dense, of an architecture with an adapter, on the CPU; it does not change. With
            low-rank adapters of ``peft`` a copy is measured into which they are merged, as
            :func:`finegates.compact` merges them.
        batch: sequences of a forward pass; None: those of ``inputs``, otherwise 8.
        length: tokens of each; None: those of ``inputs``, otherwise 128. Inputs that are not
            tokens, such as images, need it: it is the number of tokens that a block gets of one.
        inputs: keyword arguments of the model's forward; None: random tokens.
        width: inputs and outputs of the measured layer; a model has its own.
        tokens: rows of its input; with a model ``batch * length``.
        repeats: rounds, of which the medians are used.
        dtype: of the layer; a model has its own.
        onednn: also try oneDNN's matmul in float32; otherwise torch's default is always used.

    Raises:
        ValueError: the model is not on the CPU, has gates, is compact already, has no description
            of its architecture, holds an adapter of ``peft`` that cannot be merged, reads other
            inputs than tokens, or cannot compute the batch; a number is below 1; or ``batch`` or
            ``length`` is not that of ``inputs``.
        TypeError: an argument has another type.
    """
    for name, value in (("width", width), ("tokens", tokens), ("repeats", repeats)):
        check_whole(name, value)
    with torch.random.fork_rng(devices=[]):
        return _measured(model, batch, length, inputs, width, tokens, repeats, dtype, onednn)


def _measured(
    model: nn.Module | None,
    batch: int | None,
    length: int | None,
    inputs: Mapping[str, Any] | None,
    width: int,
    tokens: int,
    repeats: int,
    dtype: torch.dtype,
    onednn: bool,
) -> CostModel:
    """:func:`calibrate`, which draws random numbers."""
    if model is None:
        for name, value in (("batch", batch), ("length", length)):
            if value is not None:
                check_whole(name, value)
        shape = Shape(dtype, width, 4 * width, max(1, width // 64), min(64, width))
        each = min(LENGTH if length is None else length, tokens)
        cost = _with_layers(_basic(width, tokens, repeats, dtype, onednn), shape, tokens, repeats)
        return _with_attention(cost, shape, max(1, tokens // each), each, repeats)
    check_measurable(model)
    found = measured_batch(model, batch, length, inputs)
    check_runs(merged_copy(unwrap(model)).eval(), found)
    shape, tokens = model_shape(model), found.sequences * found.length
    cost = _basic(shape.hidden, tokens, repeats, shape.dtype, onednn)
    cost = _with_layers(cost, shape, tokens, repeats)
    cost = _with_attention(cost, shape, found.sequences, found.length, repeats)
    return fitted_to_model(replace(cost, length=found.length), model, found, repeats)


def _basic(width: int, tokens: int, repeats: int, dtype: torch.dtype, onednn: bool) -> CostModel:
    """The matmul to use and the widths of heads; prices are not measured yet."""
    onednn_from = None
    if onednn and dtype == torch.float32 and has_onednn():
        x = torch.randn(tokens, width, dtype=dtype, device="cpu")
        weight = torch.randn(width, width, dtype=dtype, device="cpu")
        with torch.inference_mode():
            onednn_from = _onednn_from(x, weight, repeats)
    return CostModel(
        onednn_from=onednn_from,
        head_multiple=_head_multiple(tokens, repeats, dtype),
        dtype=str(dtype).removeprefix("torch."),
        device="cpu",
    )


# Kept parts of outputs and inputs of the measured layers.
_PARTS = ((1.0, 1.0), (0.71, 0.83), (0.43, 0.57), (0.57, 0.29), (0.29, 0.91))
# Of those that also gather or scatter.
_MOVED = ((0.71, 0.83), (0.43, 0.29))


def _with_layers(cost: CostModel, shape: Shape, tokens: int, repeats: int) -> CostModel:
    """Fits the costs of linear layers, of gathers and of scatters to layers of several sizes.

    Sizes are those of attention and feed-forward layers, whole and with some dimensions gone, which
    are not multiples of the vectors of a processor.
    """
    sides = (shape.hidden, shape.intermediate)
    pairs = [(o, i) for o in sides for i in sides if (o, i) != (shape.intermediate,) * 2]
    kinds = [(parts, False, False) for parts in _PARTS]
    kinds += [(parts, gathers, not gathers) for parts in _MOVED for gathers in (True, False)]
    runs: dict[str, Callable[[], object]] = {}
    work: list[tuple[int, ...]] = []
    for (rows, cols), (parts, gathers, scatters) in itertools.product(pairs, kinds):
        outputs, columns = (max(1, round(n * p)) for n, p in zip((rows, cols), parts, strict=True))
        layer = CompactLinear(
            torch.randn(outputs, columns, dtype=shape.dtype, device="cpu"),
            torch.zeros(outputs, dtype=shape.dtype, device="cpu"),
            in_features=cols if gathers else columns,
            out_features=rows if scatters else outputs,
            cols=_spread(columns, cols) if gathers else None,
            rows=_spread(outputs, rows) if scatters else None,
        )
        layer.onednn_from = cost.onednn_from
        x = torch.randn(tokens, layer.in_features, dtype=shape.dtype, device="cpu")
        runs[f"{len(runs)}: {outputs} x {columns}"] = partial(layer, x)
        moved = (gathers * columns, scatters * rows, int(gathers), int(scatters))
        work.append((outputs * columns, outputs, columns, 1, *moved))
    found = _fitted(runs, work, tokens, max(3, repeats // 3))
    names = (
        *("product", "output", "input", "layer"),
        *("gather", "scatter", "gather_call", "scatter_call"),
    )
    prices = dict(zip(names, found, strict=True))
    for name in ("product", "gather", "scatter"):
        prices[name] = max(_LEAST, prices[name])
    return replace(cost, **prices)  # type: ignore[arg-type]


def _spread(count: int, size: int) -> torch.Tensor:
    """Positions (count,) spread evenly over a size."""
    return torch.arange(count, dtype=torch.int64, device="cpu") * size // count


def _with_attention(
    cost: CostModel, shape: Shape, batch: int, length: int, repeats: int
) -> CostModel:
    """Fits the costs of attention to fewer and narrower heads, and those of the activation.

    What every call takes stays with a part of which all dimensions are closed, so it is left out.
    """
    runs: dict[str, Callable[[], object]] = {}
    work: list[tuple[int, ...]] = []
    multiple = cost.head_multiple
    for part in (1.0, 0.58, 0.34):
        for share in (1.0, 0.5):
            heads = max(1, round(part * shape.heads))
            width = max(1, round(share * shape.head_dim / multiple)) * multiple
            run = attention_run(shape, batch, length, heads, width)
            runs[f"{len(runs)}: {heads} of {width}"] = run
            work.append((2 * heads * width * length, heads * length, 1))
    tokens, rounds = batch * length, max(3, repeats // 3)
    attention, score, _ = _fitted(runs, work, tokens, rounds)
    sizes = [max(1, shape.intermediate // part) for part in (1, 2, 4)]
    acts = {
        f"{n}: {size} values": activation_run(replace(shape, intermediate=size), tokens)
        for n, size in enumerate(sizes)
    }
    activation, _ = _fitted(acts, [(size, 1) for size in sizes], tokens, rounds)
    return replace(cost, attention=max(_LEAST, attention), score=score, activation=activation)


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
