"""From gated to compact: gates and low-rank terms are folded in, closed sides are cut away."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from finegates.adapters import Adapter, adapter_for, attentions, unwrap
from finegates.compaction.cost import CostModel
from finegates.compaction.draft import gate_values
from finegates.compaction.graphs import allow_graphs
from finegates.compaction.peft_targets import teach_peft
from finegates.compaction.planner import plan_compaction
from finegates.compaction.plans import LayerPlan
from finegates.gates.gated_linear import GatedLinear, gated_layers, leaf_gates
from finegates.gates.parts import forget_attachment
from finegates.initialisation import mark_initialised
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.linear import dense_weight, find_linear, unmergeable
from finegates.modules.stock_methods import adapt_stock_methods
from finegates.modules.tying import move_tied_keys, note_untied
from finegates.wrappers import check_undispatched, remove_autocast

logger = logging.getLogger(__name__)

# What peft leaves on the model object, or on a model inside it that it was given.
_LEFTOVERS = ("peft_config", "_hf_peft_config_loaded")


@torch.no_grad()
def compact(
    model: nn.Module,
    *,
    inplace: bool = False,
    adapter: Adapter | None = None,
    cost: CostModel | None = None,
) -> nn.Module:
    """Makes a gated model physically smaller without changing what it computes in evaluation mode.

    A gated layer ``y = w_r * (W (w_c * x) + b)`` becomes a :class:`CompactLinear` with
    ``W' = w_r W w_c`` and ``b' = w_r b``, less its closed rows and columns; feed-forward pairs
    are narrowed on both sides, attention heads to what their scores and values need
    (:func:`finegates.compaction.plan_compaction`). Outputs are equal
    bit for bit where the arithmetic is exact, and otherwise within rounding of the two orders of
    multiplication: with n inputs and unit roundoff u, each layer's output differs by at most
    2 (n + 4) u / (1 - (n + 4) u) times ``|w_r| (|W| |w_c| |x| + |b|)``.

    Args:
        model: gated, in any mode; LoRA inside the gates or next to them is merged. Compacting a
            compact model again changes nothing. Containers of trainers are taken off
            (``DistributedDataParallel``, ``torch.compile``).
        inplace: rewrite the given model layer by layer, so that dense and compact weights never
            stand side by side; the given model must not be used any more.
        adapter: describes the blocks; looked up by model type if None.
        cost: leave a side dense where removing it would cost more time than it saves, and multiply
            by the faster product (``CostModel()``, or :func:`finegates.calibrate` for this
            machine's). None gives the smallest model, and torch's default product but for layers
            that are compact already, which keep theirs.

    Returns:
        a plain model (no gates, no peft) in evaluation mode whose parameters are all trainable. It
        computes in the precision of its weights, without the autocast of mixed-precision training.
        Hooks are on the module that takes the place of theirs; those of gated layers, and of layers
        that became one product, are gone.
        With ``inplace=False`` it shares nothing with the given one.

    Raises:
        ValueError: the model has neither gates nor compact layers, or holds something of peft that
            cannot be merged into a linear layer: all but plain LoRA must have been merged by peft
            (:func:`finegates.modules.linear.unmergeable`), or has the device hooks of accelerate
            (``device_map``). The given model is as it was.
    """
    plain = unwrap(model)
    check_undispatched(plain)
    if not gated_layers(plain) and not any(isinstance(m, CompactLinear) for m in plain.modules()):
        raise ValueError(
            f"{type(plain).__name__} has no gates, so there is nothing to compact; call "
            "finegates.attach and train first"
        )
    plan = plan_compaction(plain, adapter, cost)  # refuses gates without values
    gates = leaf_gates(plain)
    if gates and not any(bool(gate.closed().any()) for gate in gates):
        warnings.warn(
            f"no gate of {type(plain).__name__} is closed, so the compact model is of the full "
            "size; finegates.GateTrainer closes gates while it trains",
            stacklevel=3,
        )
    if (plan.heads or plan.joined) and adapter is None:
        adapter = adapter_for(plain)
    merged = [path for path in _low_rank_layers(plain) if path not in plan.layers]

    if inplace:
        result = plain
        for path in merged:
            layer = result.get_submodule(path)
            result = _replace(result, path, _take_hooks(layer, _merge(layer)))
        for path, kept in plan.layers.items():
            layer = result.get_submodule(path)
            result = _replace(result, path, _take_hooks(layer, _shrink(layer, kept)))
    else:
        # deepcopy takes what its memo holds for copied: dense weights are never doubled.
        memo: dict[int, object] = {}
        for path in merged:
            layer = plain.get_submodule(path)
            memo[id(layer)] = _take_hooks(layer, _merge(layer))
        for path, kept in plan.layers.items():
            layer = plain.get_submodule(path)
            memo[id(layer)] = _take_hooks(layer, _shrink(layer, kept))
        result = copy.deepcopy(plain, memo)

    if plan.heads:
        assert adapter is not None
        for path, part in attentions(adapter, result).items():
            if path in plan.heads:
                module = result.get_submodule(path)
                narrowed = adapter.narrow(module, part, plan.heads[path])
                result = _replace(result, path, _take_hooks(module, narrowed))
    for path in plan.joined:
        assert adapter is not None
        module = result.get_submodule(path)
        result = _replace(result, path, _take_hooks(module, adapter.join(module)))
    result = _without_training_wrappers(result)
    for path in plan.layers:
        move_tied_keys(result, f"{path}.base", path)
    note_untied(result)
    remove_autocast(result)
    forget_attachment(result)
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
    return mark_initialised(result).eval()


def _shrink(layer: nn.Module, plan: LayerPlan) -> CompactLinear:
    """The compact form of a gated or plain linear layer, in new tensors."""
    gated = layer if isinstance(layer, GatedLinear) else None
    base = layer if gated is None else gated.base
    # Half precision is merged and folded in float32 and rounded once.
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
    if plan.scale != 1.0:
        kept *= plan.scale
        bias = None if bias is None else bias * plan.scale

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


def _on(index: Tensor | None, device: torch.device) -> Tensor | None:
    """An index of the layer's own, whatever the plan does with its."""
    return None if index is None else index.to(device, copy=True)


def _constant_shift(
    weight: Tensor, constants: Tensor | None, col_gate: Tensor | None
) -> Tensor | None:
    """What removed columns with constant input add to the output: W (w_c * c), float64 (rows,)."""
    if constants is None:
        return None
    constants = constants.to(weight.device)
    if col_gate is not None:
        constants = constants * col_gate.to(constants)
    where = constants.nonzero().flatten()
    return weight.index_select(1, where).to(torch.float64) @ constants[where]


def _select(tensor: Tensor, dimension: int, index: Tensor | None) -> Tensor:
    return tensor if index is None else tensor.index_select(dimension, index)


def _low_rank_layers(model: nn.Module) -> list[str]:
    """Paths of low-rank layers outside gates; refuses whatever of peft no linear layer can hold."""
    paths = []
    for path, module in _outermost_peft(model):
        if _is_training_wrapper(module):
            continue
        try:
            find_linear(module)
        except TypeError:
            raise ValueError(
                f"{path}: {type(module).__name__} of peft is not a low-rank layer around a linear "
                "one; merge it with peft (merge_and_unload) before compacting"
            ) from None
        if getattr(module, "disable_adapters", False):
            # Also where it is merged: peft takes it out of the weight again at the next call.
            raise ValueError(
                f"{path}: its low-rank adapter is switched off; switch it on or unload it before "
                "compacting, so that it is clear what the model computes"
            )
        reason = unmergeable(module)
        if reason is not None:
            raise ValueError(
                f"{path}: {reason}; merge it with peft before compacting (merge_and_unload, which "
                "leaves gates where they are)"
            )
        paths.append(path)
    inside = {f"{path}.base" if path else "base" for path in gated_layers(model)}
    return [path for path in paths if path not in inside]


def _outermost_peft(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules of peft in which no other module of peft lies around, training wrappers apart."""
    seen: list[str] = []
    for path, module in model.named_modules():
        # The layers of others who build on peft are known by their method.
        if not (type(module).__module__.startswith("peft.") or hasattr(module, "get_base_layer")):
            continue
        if any(path.startswith(f"{outer}.") for outer in seen):
            continue
        if not _is_training_wrapper(module):
            seen.append(path)
        yield path, module


def _is_training_wrapper(module: nn.Module) -> bool:
    # peft's modules_to_save: a trained copy of a module beside the original one.
    return hasattr(module, "original_module") and hasattr(module, "modules_to_save")


def _without_training_wrappers(model: nn.Module) -> nn.Module:
    for path, module in list(model.named_modules()):
        if not _is_training_wrapper(module):
            continue
        active = module.active_adapters[0] if module.active_adapters else None
        trained = module.modules_to_save
        if active in trained and not getattr(module, "disable_adapters", False):
            chosen = trained[active]
        else:
            chosen = module.original_module
        assert isinstance(chosen, nn.Module)
        model = _replace(model, path, chosen)
    return model


def _merge(layer: nn.Module) -> nn.Module:
    """A low-rank layer without gates as a plain layer."""
    weight, bias = dense_weight(layer)
    weight = weight.clone(memory_format=torch.contiguous_format)
    bias = None if bias is None else bias.clone()
    if not isinstance(find_linear(layer), nn.Linear):
        return CompactLinear(weight, bias)
    outputs, columns = weight.shape
    # No memory, no random start: both are replaced at once.
    plain = nn.Linear(columns, outputs, bias=bias is not None, device="meta", dtype=weight.dtype)
    plain.weight = nn.Parameter(weight)
    plain.bias = None if bias is None else nn.Parameter(bias)  # type: ignore[assignment]
    return plain


def _take_hooks(old: nn.Module, new: nn.Module) -> nn.Module:
    """Calls on the new module what was to be called on the old one; returns the new one.

    Hooks of gated layers go with the gates: training put some of them there.
    """
    if new is old or isinstance(old, GatedLinear):
        return new
    for name, hooks in vars(old).items():
        # Hooks, and how each is to be called.
        if name.startswith(("_forward_", "_backward_")) or name == "_is_full_backward_hook":
            setattr(new, name, hooks.copy() if hasattr(hooks, "copy") else hooks)
    return new


def _replace(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """Puts a module wherever the one at the path is used; returns the model, or its successor."""
    if not path:
        return module
    old = model.get_submodule(path)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = module
    return model
