"""Transforms gated models to compact ones: fold gates and LoRA, cut closed sides."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finegates.adapters import Adapter, adapter_for, attentions, unwrap
from finegates.adapters.registered import registered_in
from finegates.compaction.carried_code import check_forwards, check_layer_forwards, with_hooks_of
from finegates.compaction.certificate import (
    check_equal,
    check_inputs,
    check_recorded,
    float64_copy,
    record,
    record_compact,
    writing_layers,
)
from finegates.compaction.cost import CostModel
from finegates.compaction.draft import gate_values
from finegates.compaction.graphs import allow_graphs
from finegates.compaction.merging import (
    low_rank_layers,
    merged_layer,
    replaced,
    take_hooks,
    without_training_wrappers,
)
from finegates.compaction.peft_targets import teach_peft
from finegates.compaction.planner import plan_compaction
from finegates.compaction.plans import ExpertsPlan, LayerPlan, Plan
from finegates.compaction.reopening import is_compact
from finegates.compaction.widening import widened
from finegates.gates.bypass import stop_watching
from finegates.gates.gated_experts import GatedExperts
from finegates.gates.gated_linear import GatedLinear, leaf_gates
from finegates.gates.gated_output import remove_output_gates
from finegates.gates.parts import forget_attachment
from finegates.initialisation import mark_initialised
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.experts import narrowed_experts
from finegates.modules.kinds import has_gates
from finegates.modules.linear import dense_weight, find_linear
from finegates.modules.narrow_stream import narrow_stream
from finegates.modules.stock_methods import adapt_stock_methods
from finegates.modules.tying import move_tied_keys, note_untied
from finegates.wrappers import check_undispatched, remove_autocast

logger = logging.getLogger(__name__)

# Attributes that peft leaves on a model, or on a part that it wrapped.
_LEFTOVERS = ("peft_config", "_hf_peft_config_loaded")


@torch.no_grad()
def compact(
    model: nn.Module,
    *,
    inplace: bool = False,
    adapter: Adapter | None = None,
    cost: CostModel | None = None,
    verify: Mapping[str, Any] | None = None,
    verify_dtype: torch.dtype | None = None,
) -> nn.Module:
    """Makes a gated model physically smaller, with equal evaluation outputs.

    A gated layer ``y = w_r * (W (w_c * x) + b)`` becomes a :class:`CompactLinear` with ``W' = w_r W
    w_c`` and ``b' = w_r b`` without its closed rows and columns. Feed-forward pairs are narrowed on
    both sides, attention heads to the dimensions that their scores and values need
    (:func:`finegates.compaction.plan_compaction`). Outputs are equal bit for bit if the arithmetic
    is exact. Otherwise they differ by the rounding of the two orders of multiplication: with n
    inputs and unit roundoff u, each layer's output differs by at most 2 (n + 4) u / (1 - (n + 4) u)
    times ``|w_r| (|W| |w_c| |x| + |b|)``.

    Args:
        model: gated, in any mode; LoRA inside or next to the gates is merged. One that shrank while
            it was trained is first given its dense sizes, in a copy. Compacting a compact
            model again changes nothing. Wrappers of trainers are removed
            (``DistributedDataParallel``, ``torch.compile``).
        inplace: rewrite the given model layer by layer, so that dense and compact weights are never
            in memory together; the given model must not be used afterwards.
        adapter: describes the blocks; looked up if None.
        cost: keep a side dense if its gather or scatter would cost more time than its removal
            saves, and use the faster matmul (``CostModel()``, or :func:`finegates.calibrate` for
            this machine). Heads, feed-forward dimensions, and sides at a narrower residual stream
            are always removed. Costs of another dtype or device are taken: outputs do not depend
            on them. None gives the smallest model with torch's default matmul; layers that are
            compact already keep theirs.
        verify: keyword arguments of the model's forward; both models are run on them, with the
            same random numbers, and their outputs must be equal up to rounding.
        verify_dtype: ``torch.float64`` compares copies in float64, where rounding hides nothing,
            at the cost of their memory; None compares in the dtype of the weights.

    Returns:
        a plain model (without gates and peft) in evaluation mode whose parameters are all
        trainable. It computes in the dtype of its weights, without autocast. Hooks move to the new
        modules. One on a gated layer moves if its inputs and outputs have the same sizes, and one
        on the layer between the gates if these are also open; otherwise it is dropped, with a
        warning that names the layer. With ``inplace=False`` it shares no tensors with the given
        model.

    Raises:
        ValueError: the model has neither gates nor compact layers; settings of its modules changed
            after dimensions were removed from it while it was trained or gated again, or a smaller
            layer got a hook; it has an adapter of peft that cannot be merged into a linear layer
            (:func:`finegates.modules.linear.unmergeable`; peft must merge anything but plain LoRA
            first); it has device hooks of accelerate (``device_map``); the forward of a gated layer
            was replaced; a function replaces the forward of a module around one
            (``inplace=False``); or ``verify`` has a cache that holds keys, or gives no numbers to
            compare. The given model does not change.
        NotEqualError: the outputs on ``verify`` differ by more than rounding; names the first layer
            that differs. With ``inplace=True`` the given model is lost.
    """
    given = unwrap(model)
    check_undispatched(given)
    plain = widened(given)
    if not has_gates(plain) and not is_compact(plain):
        raise ValueError(
            f"{type(plain).__name__} has no gates, so there is nothing to compact; call "
            "finegates.attach and train first"
        )
    plan = plan_compaction(plain, adapter, cost)  # raises for gates without values
    specs = registered_in(plain)
    points: list[str] = []
    kept_width = None if plan.stream is None else plan.stream.kept
    expected = None
    if verify is not None:
        check_inputs(verify, verify_dtype)
        # Layers that write to a narrower stream have other outputs.
        as_given = plan.stream is None and plain is given
        points = writing_layers(plain, adapter) if as_given else []
        if verify_dtype is None:
            expected = check_recorded(record(given, verify, points), given)
        else:
            _verify_copies(given, verify, points, adapter, cost, kept_width)
    gates = leaf_gates(plain)
    if gates and not any(bool(gate.closed().any()) for gate in gates):
        warnings.warn(
            f"no gate of {type(plain).__name__} is closed, so the compact model has the full "
            "size; finegates.GateTrainer closes gates while it trains",
            stacklevel=3,
        )
    if (plan.heads or plan.joined) and adapter is None:
        adapter = adapter_for(plain)
    merged = [path for path in low_rank_layers(plain) if path not in plan.layers]
    check_layer_forwards(plain, plan.layers)
    if not inplace:
        check_forwards(plain, plan.layers)
    fused = _fused(plain, plan, adapter)
    lost: list[str] = []

    def small(path: str, kept: LayerPlan) -> nn.Module:
        layer = plain.get_submodule(path)
        made = take_hooks(layer, _shrink(layer, kept))
        if isinstance(layer, GatedLinear):
            narrow = kept.input_width is not None or kept.output_width is not None
            same = not narrow and plan.stream is None and path not in fused
            if not with_hooks_of(layer, made, same_sizes=same):
                lost.append(path)
        return made

    if inplace:
        result = plain
        for path in merged:
            layer = result.get_submodule(path)
            result = replaced(result, path, take_hooks(layer, merged_layer(layer)))
        for path, kept in plan.layers.items():
            result = replaced(result, path, small(path, kept))
        for path, wanted in plan.experts.items():
            result = replaced(result, path, _shrink_experts(result.get_submodule(path), wanted))
    else:
        # deepcopy skips objects in its memo, so that dense weights are not copied.
        memo: dict[int, object] = {}
        for path in merged:
            layer = plain.get_submodule(path)
            memo[id(layer)] = take_hooks(layer, merged_layer(layer))
        for path, kept in plan.layers.items():
            memo[id(plain.get_submodule(path))] = small(path, kept)
        narrowed_stacks = {}
        for path, wanted in plan.experts.items():
            stack = plain.get_submodule(path)
            narrowed_stacks[path] = memo[id(stack)] = _shrink_experts(stack, wanted)
        result = copy.deepcopy(plain, memo)
        for stack in narrowed_stacks.values():  # the copy's configuration
            stack.config = memo.get(id(stack.config), stack.config)  # type: ignore

    if lost:
        warnings.warn(
            f"{lost[0]} has a hook ({len(lost)} such layers), which is dropped, because the layer "
            "that was gated there has other inputs or outputs now; if the hook changes them, the "
            "compact model computes something else: add it to the compact model",
            stacklevel=3,
        )
    if plan.heads:
        assert adapter is not None
        for path, part in attentions(adapter, result).items():
            if path in plan.heads:
                module = result.get_submodule(path)
                narrowed = adapter.narrow(module, part, plan.heads[path])
                result = replaced(result, path, take_hooks(module, narrowed))
    for path in plan.joined:
        assert adapter is not None
        module = result.get_submodule(path)
        result = replaced(result, path, take_hooks(module, adapter.join(module)))
    result = without_training_wrappers(result)
    remove_output_gates(result)
    if plan.stream is not None:
        narrow_stream(result, plan.stream.stream, plan.stream.kept, plan.stream.gate)
    for path in plan.layers:
        move_tied_keys(result, f"{path}.base", path)
    note_untied(result)
    remove_autocast(result)
    forget_attachment(result)
    stop_watching(result)
    for module in result.modules():
        for name in _LEFTOVERS:
            module.__dict__.pop(name, None)
    for parameter in result.parameters():
        parameter.requires_grad_(True)
    if cost is not None:
        for module in result.modules():
            if isinstance(module, CompactLinear):
                module.onednn_from = cost.onednn_from
    adapt_stock_methods()
    teach_peft()
    allow_graphs(result)
    logger.info("compacted %s: %s", type(plain).__name__, plan.summary())
    mark_initialised(result).eval()
    if verify is not None and expected is not None:
        check_equal(expected, record_compact(result, verify, points), kept_width, specs)
    return result


def _fused(model: nn.Module, plan: Plan, adapter: Adapter | None) -> set[str]:
    """Paths of the layers that are fused with others."""
    found = {path for each in plan.joined for path in plan.layers if path.startswith(f"{each}.")}
    parts = attentions(adapter, model) if plan.heads and adapter is not None else {}
    for path, sizes in plan.heads.items():
        if sizes.fused:
            found |= set(parts[path].joint_linears())
    return found


def _verify_copies(
    model: nn.Module,
    inputs: Mapping[str, Any],
    points: list[str],
    adapter: Adapter | None,
    cost: CostModel | None,
    kept: Tensor | None,
) -> None:
    """Compares copies of both models in float64; raises NotEqualError.

    The compact copy is made from the gated one in float64, so that its weights are not rounded.
    """
    specs = registered_in(model)
    double = float64_copy(model)
    remove_autocast(double)
    expected = check_recorded(record(double, inputs, points, strict=True), model)
    small = compact(double, inplace=True, adapter=adapter, cost=cost)
    check_equal(expected, record_compact(small, inputs, points, strict=True), kept, specs)


def _shrink(layer: nn.Module, plan: LayerPlan) -> CompactLinear:
    """Makes the compact form of a gated or plain linear layer, with new tensors."""
    gated = layer if isinstance(layer, GatedLinear) else None
    base = layer if gated is None else gated.base
    # Half-precision weights are merged and folded in float32 and rounded once.
    weight, bias = dense_weight(base, rounded=False)
    device = weight.device
    dtype: torch.dtype = find_linear(base).weight.dtype  # type: ignore[assignment]
    wide = torch.promote_types(dtype, torch.float32)
    row_gate = None if gated is None else gate_values(gated.rows, dtype)
    col_gate = None if gated is None else gate_values(gated.cols, dtype)
    rows = None if plan.rows is None else plan.rows.to(device)
    cols = None if plan.cols is None else plan.cols.to(device)

    kept = _select(weight, 0, rows)
    shift = _constant_shift(kept, plan.constants, col_gate)
    kept = _select(kept, 1, cols).to(wide, copy=True)
    if row_gate is not None:
        row_gate = _select(row_gate.to(device, wide), 0, rows)
        kept *= row_gate[:, None]
    if col_gate is not None:
        kept *= _select(col_gate.to(device, wide), 0, cols)

    if bias is not None:
        bias = _select(bias, 0, rows).to(wide, copy=True)
    if shift is not None:
        bias = shift.to(wide) if bias is None else (bias + shift).to(wide)
    if bias is not None:
        bias = bias if row_gate is None else bias * row_gate
    if plan.scale is not None:
        scale = _select(plan.scale.to(device), 0, rows)
        kept = (kept * scale[:, None]).to(wide)
        bias = None if bias is None else (bias * scale).to(wide)

    narrow_in, narrow_out = plan.input_width is not None, plan.output_width is not None
    return CompactLinear(
        kept.to(dtype).contiguous(),  # Conv1D stores it transposed
        None if bias is None else bias.to(dtype),
        in_features=plan.input_width if narrow_in else plan.in_features,
        out_features=plan.output_width if narrow_out else plan.out_features,
        cols=_on(plan.read if narrow_in else plan.cols, device),
        rows=_on(plan.write if narrow_out else plan.rows, device),
        dense_shape=(plan.out_features, plan.in_features),
    )


def _shrink_experts(stack: nn.Module, plan: ExpertsPlan) -> nn.Module:
    """The experts with the kept dimensions alone, the gate multiplied in."""
    assert isinstance(stack, GatedExperts)
    return narrowed_experts(stack.base, plan.kept, plan.width, stack.value())


def _on(index: Tensor | None, device: torch.device) -> Tensor | None:
    """A copy of an index, independent of the plan."""
    return None if index is None else index.to(device, copy=True)


def _constant_shift(
    weight: Tensor, constants: Tensor | None, col_gate: Tensor | None
) -> Tensor | None:
    """Contribution of constant inputs of removed columns, W (w_c * c), float64 (rows,)."""
    if constants is None:
        return None
    constants = constants.to(weight.device)
    if col_gate is not None:
        constants = constants * col_gate.to(constants)
    where = constants.nonzero().flatten()
    return weight.index_select(1, where).to(torch.float64) @ constants[where]


def _select(tensor: Tensor, dimension: int, index: Tensor | None) -> Tensor:
    return tensor if index is None else tensor.index_select(dimension, index)
