"""Fits a cost model to the times of a model and of compact forms of it.

Costs of single kinds of work are measured in short loops, whose data stay in the caches. In a model
they take longer, each by about the same factor. So the predicted time of the blocks is multiplied
by one factor, and the time of everything else is added: both are fitted to the dense model and to
two compact forms with random dimensions removed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from finegates.adapters import adapter_for, unwrap
from finegates.clock import interleaved
from finegates.compaction.activations import activation_of
from finegates.compaction.cost import CostModel
from finegates.compaction.measured_batch import Batch
from finegates.compaction.merging import merged_copy
from finegates.compaction.predicted_time import PredictedTime
from finegates.compaction.products import use_products
from finegates.compaction.reopening import compact_module
from finegates.compaction.transform import compact
from finegates.gates.config import Dimensions
from finegates.gates.gated_linear import gated_layers
from finegates.gates.shared import build_structure
from finegates.gates.stochastic import StochasticGate
from finegates.model_argument import check_model
from finegates.modules.linear import linear_shape

Run = Callable[[], object]

# Largest relative error of the fitted times that is not worth a warning.
_LOOSE = 0.05


@dataclass(frozen=True)
class Shape:
    """Sizes of the first block of a model, whose kinds of work are measured.

    Attributes:
        dtype: of its weights.
        hidden: of the residual stream.
        intermediate: dimensions of the feed-forward part.
        heads: query heads.
        head_dim: width of a head.
        each: query heads for each key-value head.
        causal: whether tokens attend to earlier ones alone.
        phi: the activation.
        gated: whether the activation is multiplied by a second projection.
    """

    dtype: torch.dtype
    hidden: int
    intermediate: int
    heads: int
    head_dim: int
    each: int = 1
    causal: bool = False
    phi: Callable[[Tensor], Tensor] = functional.gelu
    gated: bool = False


def check_measurable(model: nn.Module) -> None:
    """Raises ValueError unless a model is dense and on the CPU."""
    check_model(model)
    inner = unwrap(model)
    if gated_layers(inner):
        raise ValueError("the model has gates; measure the dense one, before finegates.attach")
    small = compact_module(inner)
    if small is not None:
        raise ValueError(
            f"the model is compact ({small or type(inner).__name__} became narrower), and costs "
            "are measured by removing dimensions of a dense model; measure the model that it was "
            "made from"
        )
    device = next(inner.parameters()).device.type
    if device != "cpu":
        raise ValueError(f"times are measured on the CPU, and the model is on {device!r}")


def model_shape(model: nn.Module) -> Shape:
    """The sizes of a model's first attention and feed-forward part."""
    inner = unwrap(model)
    blocks = adapter_for(inner).blocks(inner)
    part = next((a for block in blocks for a in block.attentions), None)
    feed = next((block.feed_forward for block in blocks if block.feed_forward is not None), None)
    if part is None or feed is None:
        raise ValueError(f"{type(inner).__name__} has no described attention or feed-forward part")
    hidden, _ = linear_shape(inner.get_submodule(feed.up))
    intermediate, _ = linear_shape(inner.get_submodule(feed.down))
    phi = activation_of(feed, inner)
    dtype: torch.dtype = inner.get_submodule(feed.down).weight.dtype  # type: ignore[assignment]
    return Shape(
        dtype,
        hidden,
        intermediate,
        part.heads,
        part.head_dim,
        part.heads // part.kv_heads,
        bool(getattr(inner.get_submodule(part.path), "is_causal", False)),
        phi if callable(phi) else functional.gelu,
        feed.gate is not None,
    )


def attention_run(shape: Shape, batch: int, length: int, heads: int, width: int) -> Run:
    """A function that attends with some heads, from fused projections to the input of o."""
    groups = max(1, heads // shape.each)
    sizes = (heads * width, groups * width, groups * width)
    states = torch.randn(batch, length, sum(sizes), dtype=shape.dtype, device="cpu")

    def run() -> Tensor:
        q, k, v = (
            part.view(batch, length, -1, width).transpose(1, 2) for part in states.split(sizes, -1)
        )
        if heads > groups:
            each = -(-heads // groups)
            k, v = (part.repeat_interleave(each, 1)[:, :heads] for part in (k, v))
        context = functional.scaled_dot_product_attention(q, k, v, is_causal=shape.causal)
        return context.transpose(1, 2).reshape(batch, length, heads * width)

    return run


def activation_run(shape: Shape, tokens: int) -> Run:
    """A function that applies the activation of a feed-forward part."""
    x = torch.randn(tokens, shape.intermediate, dtype=shape.dtype, device="cpu")
    if not shape.gated:
        return lambda: shape.phi(x)
    y = torch.randn_like(x)
    return lambda: shape.phi(x) * y


@torch.no_grad()
def fitted_to_model(cost: CostModel, model: nn.Module, batch: Batch, repeats: int) -> CostModel:
    """Fits a factor of all prices, and the time of everything else, to a model.

    Args:
        cost: prices of single kinds of work.
        model: dense; it does not change. Low-rank adapters are merged in copies, as
            :func:`finegates.compact` merges them.
        batch: of a forward pass.
        repeats: twice the rounds in which the three models are run in turn.
    """
    inner = unwrap(model)
    length, tokens = batch.length, batch.sequences * batch.length
    dense = use_products(merged_copy(inner), cost).eval()
    predicted: list[float] = []
    runs: dict[str, nn.Module] = {"dense": dense}
    for kind in get_args(Dimensions):
        found = _with_random_masks(cost, inner, length, kind)
        if found is None:
            continue
        timer, masks = found
        if not predicted:
            predicted.append(timer({gate: torch.ones_like(mask) for gate, mask in masks.items()}))
        predicted.append(timer(masks))
        runs[kind] = use_products(compact(timer.gated(masks), cost=cost), cost)
    with torch.inference_mode():
        seconds = interleaved(
            {name: _forward(each, batch.inputs) for name, each in runs.items()},
            max(5, repeats // 2),
        )
    # Ratios within a round: load from outside that lasts longer than a round cancels.
    unit = float(np.median(seconds["dense"])) / tokens
    times = np.array([unit * float(np.median(seconds[name] / seconds["dense"])) for name in runs])
    work = np.array([[time, 1.0] for time in predicted], dtype=np.float64)
    factor, rest = nonnegative(work, times)
    if factor == 0.0:
        warnings.warn(
            f"{type(inner).__name__} takes as long with fewer dimensions, so its costs are those "
            "of single matmuls: it is too small, or the machine too busy, to be measured; measure "
            "again on an idle machine, or with more repeats",
            stacklevel=3,
        )
        factor, rest = 1.0, max(0.0, float(times[0]) - predicted[0])
    elif (off := float(np.abs((factor * work[:, 0] + rest) / times - 1.0).max())) > _LOOSE:
        warnings.warn(
            f"the costs miss the measured times of {type(inner).__name__} by up to {off:.0%}, so "
            "a budget on time may be missed by as much: the machine was busy; measure again on an "
            "idle machine, or with more repeats",
            stacklevel=3,
        )
    return scaled(cost, factor, rest)


def scaled(cost: CostModel, factor: float, rest: float) -> CostModel:
    """A cost model with all prices multiplied by a factor, and another rest."""
    names = (
        *("product", "gather", "scatter", "output", "input", "layer"),
        *("gather_call", "scatter_call", "score", "activation"),
    )
    prices = {name: factor * getattr(cost, name) for name in names}
    attention = None if cost.attention is None else factor * cost.attention
    return replace(cost, **prices, attention=attention, rest=rest)


def nonnegative(work: np.ndarray, times: np.ndarray) -> list[float]:
    """Prices of at least 0 with the least sum of squared relative errors.

    Args:
        work: (n, kinds), amounts of each kind of work.
        times: (n,), positive.

    Returns:
        the prices; a kind whose price would be negative has 0, and the others are fitted again.
    """
    relative = work / times[:, None]
    left = list(range(work.shape[1]))
    while True:
        scale = np.abs(relative[:, left]).max(axis=0)
        scale[scale == 0] = 1.0
        found, *_ = np.linalg.lstsq(relative[:, left] / scale, np.ones(len(times)), rcond=None)
        if (found >= 0).all() or len(left) == 1:
            break
        left.pop(int(found.argmin()))
    prices = [0.0] * work.shape[1]
    for kind, price, size in zip(left, found, scale, strict=True):
        prices[kind] = max(0.0, float(price / size))
    return prices


def _with_random_masks(
    cost: CostModel, model: nn.Module, length: int, dimensions: Dimensions
) -> tuple[PredictedTime, dict[StochasticGate, Tensor]] | None:
    """Closes dimensions of a model at random, unevenly over its layers.

    So many close that usual budgets are between the dense model and this one, where the fit is
    more exact than beyond.

    Returns:
        predictions, and masks by gate; None if the model has no such dimensions.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):  # gates draw latents, which are not used here
        try:
            _, sides = build_structure(
                model,
                lambda name, size: StochasticGate(size, "structured"),
                experts=False,
                dimensions=dimensions,
            )
        except ValueError:
            if dimensions == "all":
                raise
            return None
    timer = PredictedTime(cost, model, length, sides)
    masks = {}
    for gate in timer.gates():
        numbers = torch.rand(1 + gate.size, generator=generator, dtype=torch.float64, device="cpu")
        share, drawn = 0.2 + 0.5 * float(numbers[0]), numbers[1:]
        masks[gate] = (drawn <= drawn.kthvalue(max(1, round(share * gate.size))).values).float()
    return timer, masks


def _forward(model: nn.Module, inputs: Mapping[str, Any]) -> Run:
    return lambda: model(**inputs)
