"""The sizes of a gated model when its gates were attached.

Budgets count from them. A model that was dense is counted in its dense sizes; a compact one that is
gated or pruned again, in those of the compact model.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from finegates.adapters import Adapter, adapter_for, attentions
from finegates.compaction.planner import plan_compaction
from finegates.compaction.plans import Plan
from finegates.gates.attachment import attach_fixed
from finegates.gates.dense_form import in_dense_sizes
from finegates.gates.detachment import detach
from finegates.gates.gate import Gate
from finegates.gates.removed_before import before_of, mask_of
from finegates.gates.shared import Before, build_structure
from finegates.gates.stochastic import StochasticGate
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.kinds import between_gates
from finegates.modules.slices import parameters_by_side


def given_plan(model: nn.Module, adapter: Adapter | None = None) -> Plan:
    """Plans what an earlier compaction had left of a gated model, and nothing else.

    Args:
        model: plain, of any kind; it does not change.
        adapter: describes the blocks; looked up if None.

    Returns:
        an empty plan unless a compact model was gated or pruned again.
    """
    dense = in_dense_sizes(model)
    if not records_of(dense):
        return Plan({})
    dense = _without_numbers(dense)
    records = records_of(dense)
    detach(dense)
    gate_as_given(dense, records, adapter)
    return plan_compaction(dense, adapter)


def records_of(model: nn.Module) -> dict[str, Before]:
    """What an earlier compaction had left of a gated model and of those inside it, by path."""
    return {path: before for path, m in model.named_modules() if (before := before_of(m))}


def gate_as_given(
    model: nn.Module, records: Mapping[str, Before], adapter: Adapter | None = None
) -> None:
    """Closes what an earlier compaction had removed by constant gates, in place.

    Args:
        model: plain, in its dense sizes, without gates.
        records: of :func:`records_of`.
        adapter: describes the blocks; looked up if None.
    """
    for path, before in records.items():
        part = model.get_submodule(path)
        masks: dict[Gate, Tensor] = {}

        def make(
            name: str, size: int, before: Before = before, masks: dict[Gate, Tensor] = masks
        ) -> StochasticGate:
            gate = StochasticGate(size, "structured", device="meta")
            mask = mask_of(before, name, size)
            ones = torch.ones(size, dtype=torch.float32, device="cpu")
            masks[gate] = ones if mask is None else mask.to("cpu", torch.float32)
            return gate

        _, sides = build_structure(part, make, adapter=adapter, experts=False)
        values = {
            name: tuple(None if gate is None else gate.combined(masks.__getitem__) for gate in pair)
            for name, pair in sides.items()
        }
        attach_fixed(part, values)  # type: ignore[arg-type]


def given_numbers(model: nn.Module, plan: Plan, adapter: Adapter | None = None) -> dict[int, int]:
    """Numbers in the parameters that had other sizes when gates were attached, by ``id``.

    Args:
        model: plain, gated.
        plan: of :func:`given_plan`.
        adapter: describes the blocks; looked up if None.
    """
    dense, found = in_dense_sizes(model), {}
    removed = {path for path, m in model.named_modules() if isinstance(m, CompactLinear)}
    paths = [*removed, *(path for path in plan.layers if path not in removed)]
    for path in paths if plan.layers or dense is not model else ():
        layer, whole = model.get_submodule(path), dense.get_submodule(path)
        if isinstance(whole, CompactLinear):
            continue  # compact, in a part that got no gates
        layer = layer.linear if isinstance(layer, CompactLinear) else layer
        kept = plan.layers.get(path)
        for (parameter, *_), (full, row, col) in zip(
            *(parameters_by_side(between_gates(each)) for each in (layer, whole)), strict=True
        ):
            shape = list(full.shape)
            for axis, size in ((row, kept and kept.kept_out), (col, kept and kept.kept_in)):
                if axis is not None and size is not None:
                    shape[axis] = size
            found[id(parameter)] = prod(shape)
    parts = attentions(adapter or adapter_for(dense), dense) if plan.heads else {}
    for path, sizes in plan.heads.items():
        module, present = (
            dense.get_submodule(path),
            dict(model.get_submodule(path).named_parameters()),
        )
        own = {name for name, _ in module.named_parameters()}
        narrowed = (adapter or adapter_for(dense)).narrow(
            copy.deepcopy(module), parts[path], dataclasses.replace(sizes, fused=False)
        )
        for name, parameter in narrowed.named_parameters():
            if name in own & present.keys() and parameter.shape != module.get_parameter(name).shape:
                found[id(present[name])] = parameter.numel()
    return found


def given_size(gate: Gate) -> int:
    """The number of dimensions that a gate had after it was attached."""
    if not isinstance(gate, StochasticGate) or gate.positions is None:
        return gate.size
    return gate.dense_size if gate.before is None else max(1, int(gate.before.sum()))


def given_gates(gate: Gate) -> int:
    """The number of parameters that a gate had after it was attached."""
    each = sum(p.numel() for p in gate.parameters(recurse=False)) // gate.size
    return each * given_size(gate)


def _without_numbers(model: nn.Module) -> nn.Module:
    """A copy on the meta device; configurations are shared."""
    memo: dict[int, object] = {
        id(p): nn.Parameter(
            torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device="meta"),
            requires_grad=p.requires_grad,
        )
        for p in model.parameters()
    }
    config = getattr(model, "config", None)
    memo[id(config)] = config
    return copy.deepcopy(model, memo)
