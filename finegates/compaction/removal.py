"""Removes dimensions that are closed for good from a gated model that goes on training.

What can go is planned as for compaction, on the dense form of the model
(:mod:`finegates.gates.dense_form`): a dimension counts as open unless its gate is closed for good.
Layers keep their gates, of which the same dimensions are cut. Closed dimensions have the gate 0 in
every forward pass and no gradient, so the training goes on as it would without the removal, up to
the rounding of sums without zeros.

1. Every weight, bias and low-rank factor loses its rows and columns, in place: the parameters stay
   the same objects. So do the numbers that an optimizer holds for each of their entries.
2. The layer becomes a :class:`CompactLinear` around its gated layer.
3. Attentions are narrowed where the module is the stock one with other sizes. One whose own
   parameters or scale would change with the width of its heads keeps the width and loses heads; one
   whose parameters would change with the number of heads keeps all. Their layers still lose rows
   and columns.
4. A gate keeps at least one dimension, so that its noise is drawn as before.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finegates.adapters import Adapter, HeadSizes, adapter_for, attentions, unwrap
from finegates.compaction.plans import LayerPlan
from finegates.compaction.removal_plan import plan_removal
from finegates.gates.dense_form import DenseForm, Kept, dense_form
from finegates.gates.gate import DerivedGate, FixedGate, Gate
from finegates.gates.gated_linear import GatedLinear
from finegates.gates.parts import DENSE, gated_parts
from finegates.gates.stochastic import StochasticGate
from finegates.modules.changed_settings import move_hooks
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.slices import Cut, cut, cuts_of, note_sizes

Cuts = list[tuple[nn.Parameter, tuple[Cut, ...]]]


@torch.no_grad()
def remove_closed(model: nn.Module, optimizer: Any = None) -> bool:
    """Removes the dimensions that are closed for good, in place.

    Args:
        model: gated by a configuration with shared gates, plain.
        optimizer: holds numbers for the entries of the model's parameters; None if there is none.

    Returns:
        whether there were any.

    Raises:
        ValueError: a layer or the optimizer cannot follow; nothing changes.
    """
    form = dense_form(model) or DenseForm.of(model)
    kept = {}
    for path, (gate, _) in form.gates.items():
        present = ~gate.final().cpu()
        present[0] |= not bool(present.any())  # rule 4
        positions = torch.arange(gate.size, device="cpu")[present]
        kept[path] = positions if gate.positions is None else gate.positions.cpu()[positions]
    return _narrow_to(model, form, kept, optimizer)


@torch.no_grad()
def narrow_to(model: nn.Module, kept: Mapping[str, Sequence[int]]) -> None:
    """Removes all but some dimensions, in place, with or without storage (meta device).

    Args:
        model: as for :func:`remove_closed`.
        kept: the positions that gates keep (:meth:`DenseForm.positions`); the others keep all.

    Raises:
        ValueError: the model has no such gates, or lacks a dimension that is to be kept.
    """
    form = dense_form(model) or DenseForm.of(model)
    unknown = sorted(kept.keys() - form.gates.keys())
    if unknown:
        raise ValueError(f"the model has no gate at {unknown[0]}")
    wanted = {}
    for path, (gate, _) in form.gates.items():
        index = torch.tensor(
            list(kept.get(path, range(gate.dense_size))), dtype=torch.int64, device="cpu"
        )
        there = index.numel() > 0 and int(index[0]) >= 0 and int(index[-1]) < gate.dense_size
        if not there or bool((index.diff() <= 0).any()):
            raise ValueError(f"the positions of the gate at {path} do not increase within it")
        if gate.positions is not None and not gate.positions.is_meta:
            missing = ~torch.isin(index, gate.positions.cpu())
            if bool(missing.any()):
                raise ValueError(
                    f"{int(missing.sum())} dimensions of the gate at {path} were removed from "
                    "this model and cannot come back; make and gate it again"
                )
        wanted[path] = index
    _narrow_to(model, form, wanted, None)


def positions_kept(model: nn.Module) -> dict[str, dict[str, list[int]]]:
    """Positions that gates still have, of each gated model that lost dimensions.

    Args:
        model: plain or wrapped by ``peft``, with gated models in it.

    Returns:
        :meth:`DenseForm.positions` by the path of the gated model in the plain one.
    """
    return {
        path: form.positions()
        for path, module in unwrap(model).named_modules()
        if (form := dense_form(module)) is not None
    }


def keep_positions(model: nn.Module, kept: Mapping[str, Mapping[str, Sequence[int]]]) -> None:
    """Removes the dimensions that another model of the same origin lacks, in place.

    Args:
        model: as for :func:`positions_kept`, gated like the other.
        kept: of the other model.

    Raises:
        ValueError: the model has no such gates, or lacks a dimension that is to be kept.
    """
    parts = gated_parts(unwrap(model))
    unknown = sorted(kept.keys() - parts.keys())
    if unknown:
        raise ValueError(f"no gates were attached to {unknown[0] or 'the model'}")
    for path, positions in kept.items():
        narrow_to(parts[path][0], positions)


def _narrow_to(
    model: nn.Module, form: DenseForm, kept: Mapping[str, Tensor], optimizer: Any
) -> bool:
    """Removes all but the kept positions, (m,) of each gate by path; whether there were others."""
    if all(kept[path].numel() == gate.size for path, (gate, _) in form.gates.items()):
        return False
    form.note_settings(model, before=True)
    adapter = adapter_for(form.model)
    plan, heads = plan_removal(form, adapter, kept)
    layers = {path: _kept_of(layer) for path, layer in plan.layers.items() if _shrinks(layer)}

    cuts: Cuts = []
    for path, sides in layers.items():
        now = _positions_within(form, path, sides)
        try:
            cuts += cuts_of(_multiplied(model, path), *now)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: its dimensions cannot be removed: {error}") from None
    within = {path: _within(gate.positions, kept[path]) for path, (gate, _) in form.gates.items()}
    for path, (gate, _) in form.gates.items():
        own = (gate.latent, gate.scale)
        cuts += [(p, ((0, within[path]),)) for p in own if p is not None]
    _check_own(model, cuts)
    states = _states(optimizer, cuts)

    # All checks are done: from here on the model changes.
    for numbers, name, cuts_of_it in states:
        numbers[name] = cut(numbers[name], cuts_of_it)
    gates = {id(parameter) for gate, _ in form.gates.values() for parameter in gate.parameters()}
    for parameter, cuts_of_it in cuts:
        if id(parameter) not in gates:
            parameter.data, parameter.grad = cut(parameter.data, cuts_of_it), None
    for path, (gate, _) in form.gates.items():
        gate.narrow(within[path])
    for path in layers:
        _place(model, form, path, plan.layers[path], layers[path])
    for path, sizes in heads.items():
        _narrow(model, form.model, adapter, path, sizes)
    form.layers = {**form.layers, **layers}
    form.heads = tuple(heads)
    vars(model)[DENSE] = form
    form.note_settings(model, before=False)
    return True


def _shrinks(plan: LayerPlan) -> bool:
    return plan.rows is not None or plan.cols is not None


def _kept_of(plan: LayerPlan) -> Kept:
    rows = torch.arange(plan.out_features, device="cpu") if plan.rows is None else plan.rows
    cols = torch.arange(plan.in_features, device="cpu") if plan.cols is None else plan.cols
    return rows, cols


def _positions_within(form: DenseForm, path: str, sides: Kept) -> Kept:
    """Kept rows and columns as positions among those that the present layer has."""
    before = form.layers.get(path)
    if before is None:
        return sides
    rows, cols = (_within(old, new) for old, new in zip(before, sides, strict=True))
    return rows, cols


def _within(old: Tensor | None, new: Tensor) -> Tensor:
    """Positions of ``new`` in ``old``, both increasing; ``new`` itself if ``old`` is None."""
    if old is None:
        return new
    places = torch.searchsorted(old.cpu(), new)
    assert torch.equal(old.cpu()[places], new)
    return places


def _gated(model: nn.Module, path: str) -> nn.Module:
    """The gated (or plain) layer at a dense path of the present model."""
    layer = model.get_submodule(path)
    return layer.linear if isinstance(layer, CompactLinear) else layer


def _multiplied(model: nn.Module, path: str) -> nn.Module:
    layer = _gated(model, path)
    return layer.base if isinstance(layer, GatedLinear) else layer


def _check_own(model: nn.Module, cuts: Cuts) -> None:
    """Raises ValueError if something else uses one of the parameters, too."""
    owners: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            owners.setdefault(id(parameter), []).append(f"{path}.{name}")
    for parameter, _ in cuts:
        names = owners.get(id(parameter), [])
        if len(names) > 1:
            raise ValueError(
                f"{names[0]} is also {names[1]}, so nothing can be removed from it while "
                "training; give each its own (copy.deepcopy), or set GateConfig(shrink=False)"
            )


def _states(optimizer: Any, cuts: Cuts) -> list[tuple[Any, str, tuple[Cut, ...]]]:
    """The optimizer's numbers that have an entry for each of a parameter's, with their cuts."""
    found = []
    for parameter, cuts_of_it in cuts:
        numbers = {} if optimizer is None else optimizer.state.get(parameter, {})
        for name, value in numbers.items():
            if not isinstance(value, Tensor) or value.ndim == 0:
                continue
            if value.shape != parameter.shape:
                raise ValueError(
                    f"the {name} of {type(optimizer).__name__} has shape {tuple(value.shape)}, not "
                    f"that of its parameter {tuple(parameter.shape)}, so it cannot be cut with it; "
                    "train with AdamW, or set GateConfig(shrink=False)"
                )
            found.append((numbers, name, cuts_of_it))
    return found


def _place(model: nn.Module, form: DenseForm, path: str, plan: LayerPlan, kept: Kept) -> None:
    """Gives the gated layer at a path its smaller gates, and puts it into a compact layer."""
    layer, dense = _gated(model, path), form.model.get_submodule(path)
    linear = _multiplied(model, path)
    note_sizes(linear)
    device = next(linear.parameters()).device
    if isinstance(layer, GatedLinear):
        assert isinstance(dense, GatedLinear)
        layer.rows = _side(form, dense.rows, kept[0], device)
        layer.cols = _side(form, dense.cols, kept[1], device)
        layer.out_features, layer.in_features = (side.numel() for side in kept)
        for _, gate in layer.gates():
            gate.train(layer.training)

    def index(narrow: int | None, inside: Tensor | None, side: Tensor | None) -> Tensor | None:
        chosen = side if narrow is None else inside
        return None if chosen is None else chosen.to(device, copy=True)

    small = CompactLinear.around(
        layer,
        (kept[0].numel(), kept[1].numel()),
        in_features=plan.in_features if plan.input_width is None else plan.input_width,
        out_features=plan.out_features if plan.output_width is None else plan.output_width,
        cols=index(plan.input_width, plan.read, plan.cols),
        rows=index(plan.output_width, plan.write, plan.rows),
        dense_shape=(plan.out_features, plan.in_features),
    )
    small.training = layer.training
    model.set_submodule(path, small)


def _side(form: DenseForm, dense: Gate | None, kept: Tensor, device: torch.device) -> Gate | None:
    """The present gate over the kept dimensions of a dense one."""
    if dense is None:
        return None
    present = {id(constant): gate for gate, constant in form.gates.values()}
    sources: list[tuple[Gate, Tensor]] = []
    for constant, places in dense.uses():
        if id(constant) in present:
            now = present[id(constant)]
            sources.append((now, _places(now, places.cpu()[kept]).to(device)))
            continue
        values = torch.cat([constant.value(), constant.value().new_ones(1)])  # -1 is the constant 1
        values = values[places.cpu()[kept]]
        if not bool(values.all()):
            whole = torch.arange(kept.numel(), device=device)
            sources.append((FixedGate(values.to(device)), whole))
    if not sources:
        return None
    gate, index = sources[0]
    alone = not isinstance(dense, DerivedGate) and index.numel() == gate.size
    return gate if alone else DerivedGate(sources)


def _places(gate: StochasticGate, dense: Tensor) -> Tensor:
    """Positions in the present gate of dense dimensions; -1 stays."""
    if gate.positions is None:
        return dense
    lookup = torch.full((gate.dense_size + 1,), -1, dtype=torch.int64, device="cpu")
    lookup[gate.positions.cpu()] = torch.arange(gate.size, device="cpu")
    places = lookup[dense]
    assert bool(((places >= 0) | (dense < 0)).all())
    return places


def _narrow(
    model: nn.Module, dense: nn.Module, adapter: Adapter, path: str, sizes: HeadSizes
) -> None:
    """Replaces the attention at a path by the stock one with other sizes and the same children."""
    present = model.get_submodule(path)
    stock = dense.get_submodule(path)
    config: Any = getattr(stock, "config", None)
    module = copy.deepcopy(stock, {id(config): config})
    for name in list(module._modules):
        module._modules[name] = getattr(present, name)
    for name in list(module._parameters):
        module._parameters[name] = getattr(present, name)
    own = dict(module.named_parameters())
    narrowed = adapter.narrow(module, attentions(adapter, dense)[path], sizes)
    for name, parameter in list(narrowed.named_parameters()):
        if parameter is not own[name]:  # fitted to the sizes, which leaves these as they are
            owner, _, child = name.rpartition(".")
            narrowed.get_submodule(owner)._parameters[child] = own[name]
    device = next(present.parameters()).device
    if device.type != "meta":
        for name, buffer in narrowed._buffers.items():
            if buffer is not None:
                narrowed._buffers[name] = buffer.to(device)
    narrowed.training = present.training
    move_hooks(present, narrowed)
    model.set_submodule(path, narrowed)
