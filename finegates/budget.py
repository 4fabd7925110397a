"""Parameters and multiply-accumulates, each with a named denominator.

"40 % of the model" is ambiguous: of the gated weights, of the encoder, or of all parameters. A cost
needs a batch size and a length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from torch import nn

from finegates.adapters import Adapter, adapter_for, unwrap
from finegates.compaction.counts import block_products, block_weights
from finegates.compaction.draft import gate_values
from finegates.compaction.given_sizes import given_gates, given_numbers, given_plan
from finegates.compaction.planner import LayerPlan, Plan, plan_compaction
from finegates.gates.dense_form import in_dense_sizes
from finegates.gates.gate import Gate
from finegates.gates.gated_linear import GatedLinear, gated_layers
from finegates.modules.compact_linear import CompactLinear


@dataclass(frozen=True)
class Budget:
    """Parameter counts; tied parameters and shared gates count once.

    Attributes:
        all_parameters: the model's, without gates and low-rank factors.
        encoder_parameters: those of them in the layer stack; None without an adapter.
        head_parameters: those of them in the task head; None without an adapter.
        gated_weights: weights (no biases) of the gated layers, before any removal.
        gated_biases: biases of the gated layers.
        gate_parameters: trainable or frozen parameters of gates; constant gates have none.
        low_rank_parameters: parameters of peft's adapters on linear layers.
        trainable_parameters: all parameters that require a gradient.
        removable_weights: weights of gated layers in a closed row or a closed column,
            out * in - open rows * open columns, over the layers.
        removed_weights: weights that compaction removes; more than removable where the two sides of
            a feed-forward pair remove each other's dimensions.
        realised_sparsity: removable_weights / gated_weights.
        closed_row_fraction: closed rows of all rows that have gates.
        closed_col_fraction: closed columns of all columns that have gates.

    The last five are None if gates have no values (meta device); the two fractions are also None
    without gates. For a compact model, also one that is gated or pruned again, ``gated_weights``
    counts the dense sizes of its compact layers, and the missing weights are both ``removable`` and
    ``removed``.
    """

    all_parameters: int
    encoder_parameters: int | None
    head_parameters: int | None
    gated_weights: int
    gated_biases: int
    gate_parameters: int
    low_rank_parameters: int
    trainable_parameters: int
    removable_weights: int | None
    removed_weights: int | None
    realised_sparsity: float | None
    closed_row_fraction: float | None
    closed_col_fraction: float | None

    def as_dict(self) -> dict[str, Any]:
        """The counts as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class MACs:
    """Multiply-accumulates of the encoder's layers for one batch.

    They cover the linear layers of the transformer layers, with or without a description, and the
    products of attentions with one, at batch x length. Embeddings, norms, activations, softmax,
    gathers, scatters, routers and the head are excluded, and so are experts in a list of modules
    without a description (with one, they count for every token). So are the products with relative
    positions that DeBERTa adds to its scores, and all others of modules without a description.

    Attributes:
        batch: number of sequences B.
        length: tokens per sequence L, padding included.
        linear: B * L * (weights) over the linear layers of all blocks, low-rank factors merged.
        attention: B * heads * L^2 * (query-key width + value width) over all blocks.
        total: their sum.
    """

    batch: int
    length: int
    linear: int
    attention: int
    total: int

    def as_dict(self) -> dict[str, int]:
        """The counts as plain values."""
        return asdict(self)


def measure_budget(model: nn.Module, adapter: Adapter | None = None) -> Budget:
    """Counts the parameters of a dense, gated or compact model.

    Args:
        model: may be on the meta device. If dimensions were removed while it was trained, it counts
            in its dense sizes until it is compacted. A compact model that was gated or pruned again
            counts in the sizes that it had before.
        adapter: looked up if None; without one, encoder and head are None.
    """
    present = unwrap(model)
    plain = in_dense_sizes(present)
    if adapter is None:
        adapter = _adapter_or_none(plain)
    given = given_plan(present, adapter)
    numbers = {id(p): p.numel() for p in present.parameters()}
    numbers |= given_numbers(present, given, adapter)
    gates = set()
    for gate in (m for m in present.modules() if isinstance(m, Gate)):
        own = dict(gate.named_parameters(recurse=False))
        gates |= {id(parameter) for parameter in own.values()}
        numbers |= {id(p): given_gates(gate) // len(own) for p in own.values()}
    low_rank, unused = _peft_parameters(present)
    named = list(present.named_parameters())
    dense = {
        name: numbers[id(parameter)]
        for name, parameter in named
        if id(parameter) not in gates | low_rank | unused
    }
    gated = gated_layers(plain)
    shrunk: list[CompactLinear] = [
        module for module in plain.modules() if isinstance(module, CompactLinear)
    ]
    layers: list[GatedLinear | CompactLinear] = [*gated.values(), *shrunk]
    weights = sum(map(_dense_weights, layers))
    removable, removed = _removal(plain, gated, shrunk, adapter)
    return Budget(
        all_parameters=sum(dense.values()),
        encoder_parameters=None if adapter is None else _below(dense, adapter.encoder(plain)),
        head_parameters=None if adapter is None else _below(dense, adapter.head(plain)),
        gated_weights=weights,
        gated_biases=sum(_biases(layer, None) for layer in shrunk)
        + sum(_biases(layer, given.layers.get(path)) for path, layer in gated.items()),
        gate_parameters=sum(numbers[id(p)] for _, p in named if id(p) in gates),
        low_rank_parameters=sum(numbers[id(p)] for _, p in named if id(p) in low_rank),
        trainable_parameters=sum(numbers[id(p)] for _, p in named if p.requires_grad),
        removable_weights=removable,
        removed_weights=removed,
        realised_sparsity=None if removable is None or not weights else removable / weights,
        closed_row_fraction=_closed_fraction(gated, shrunk, "rows"),
        closed_col_fraction=_closed_fraction(gated, shrunk, "cols"),
    )


def macs(model: nn.Module, batch: int, length: int, *, adapter: Adapter | None = None) -> MACs:
    """Counts the MACs of a model: dense sizes if gated, kept sizes if compact.

    Args:
        model: dense, gated or compact. A compact model that was gated or pruned again counts as it
            was before, which is the size that ``GateConfig.target`` is a fraction of.
        batch: number of sequences.
        length: tokens per sequence.
        adapter: looked up if None.

    Raises:
        ValueError: the model has no described layers.
    """
    return _macs(model, batch, length, adapter, given_plan(unwrap(model), adapter))


def planned_macs(
    model: nn.Module, batch: int, length: int, *, adapter: Adapter | None = None
) -> MACs:
    """Counts the MACs of the compacted model from its gates alone.

    Equal to ``macs(compact(model), batch, length)``, without building that model. The arguments are
    those of :func:`macs`.

    Raises:
        ValueError: the model has no described layers, or a gate has no values (meta device).
    """
    return _macs(model, batch, length, adapter, plan_compaction(model, adapter))


def _macs(model: nn.Module, batch: int, length: int, adapter: Adapter | None, plan: Plan) -> MACs:
    if batch < 1 or length < 1:
        raise ValueError(f"batch and length must be at least 1, got {batch} and {length}")
    plain = in_dense_sizes(unwrap(model))
    weights = products = 0
    for block in (adapter or adapter_for(plain)).blocks(plain):
        weights += block_weights(plain, block, plan.layers, plan.experts)
        products += block_products(plain, block, plan.heads)
    linear = batch * length * weights
    attention = batch * length * length * products
    return MACs(batch, length, linear, attention, linear + attention)


def _dense_weights(layer: GatedLinear | CompactLinear) -> int:
    if isinstance(layer, CompactLinear):
        return layer.dense_shape[0] * layer.dense_shape[1]
    return layer.out_features * layer.in_features


def _biases(layer: GatedLinear | CompactLinear, given: LayerPlan | None) -> int:
    bias: Any = layer.bias
    bias = bias() if callable(bias) else bias  # of torch's quantised layers
    if bias is None:
        return 0
    return int(bias.numel()) if given is None else given.kept_out


def _adapter_or_none(model: nn.Module) -> Adapter | None:
    try:
        return adapter_for(model)
    except ValueError:
        return None


def _below(sizes: dict[str, int], paths: Sequence[str]) -> int:
    return sum(
        size for name, size in sizes.items() if any(name.startswith(f"{path}.") for path in paths)
    )


def _peft_parameters(model: nn.Module) -> tuple[set[int], set[int]]:
    """Ids of low-rank parameters, and of originals that peft's copies replace."""
    low_rank: set[int] = set()
    unused: set[int] = set()
    for module in model.modules():
        if hasattr(module, "get_base_layer"):
            base = {id(p) for p in module.get_base_layer().parameters()}  # type: ignore[operator]
            low_rank |= {id(p) for p in module.parameters()} - base
        elif hasattr(module, "original_module") and hasattr(module, "modules_to_save"):
            unused |= {id(p) for p in module.original_module.parameters()}  # type: ignore
    return low_rank, unused


def _removal(
    model: nn.Module,
    gated: dict[str, GatedLinear],
    shrunk: list[CompactLinear],
    adapter: Adapter | None,
) -> tuple[int | None, int | None]:
    missing = sum(_dense_weights(layer) - prod(layer.kept) for layer in shrunk)
    if any(gate.value().is_meta for layer in gated.values() for _, gate in layer.gates()):
        return None, None
    removable = missing
    for layer in gated.values():
        open_rows = layer.out_features - _closed(layer, "rows")
        open_cols = layer.in_features - _closed(layer, "cols")
        removable += layer.out_features * layer.in_features - open_rows * open_cols
    plan = plan_compaction(model, adapter)
    return removable, missing + sum(layer.removed_weights for layer in plan.layers.values())


def _closed(layer: GatedLinear, side: str) -> int:
    # In the layer's precision, as in compaction.
    values = gate_values(dict(layer.gates()).get(side), layer.weight.dtype)
    return 0 if values is None else int((values == 0).sum())


def _closed_fraction(
    gated: dict[str, GatedLinear], shrunk: list[CompactLinear], side: str
) -> float | None:
    total = closed = 0
    for layer in gated.values():
        gate = dict(layer.gates()).get(side)
        if gate is None:
            continue
        if gate.value().is_meta:
            return None
        total += gate.size
        closed += _closed(layer, side)
    for small in shrunk:
        dimension = 0 if side == "rows" else 1
        total += small.dense_shape[dimension]
        closed += small.dense_shape[dimension] - small.kept[dimension]
    return closed / total if total else None
