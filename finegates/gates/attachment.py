"""Attaches gates to a model."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import nn

from finegates.adapters import adapter_for, unwrap
from finegates.adapters.base import base_prefix, head_paths
from finegates.adapters.registered import check_registered
from finegates.arguments import check_config
from finegates.gates.block_parts import Structure
from finegates.gates.bypass import watch_weights
from finegates.gates.config import GateConfig
from finegates.gates.equal_sizes import sizes_to_choose
from finegates.gates.gate import FixedGate
from finegates.gates.gateable import (
    check_dense,
    check_gateable,
    check_removable,
    check_trainable,
    matching_layers,
)
from finegates.gates.gated_experts import GatedExperts
from finegates.gates.gated_linear import GatedLinear, gated_layers, leaf_gates
from finegates.gates.gated_output import gate_outputs
from finegates.gates.in_place import is_changed_in_place
from finegates.gates.penalty import penalty_on_macs
from finegates.gates.presets import check_reachable
from finegates.gates.removed_before import before_of, mask_of
from finegates.gates.shared import Sides, build_structure
from finegates.gates.stochastic import StochasticGate
from finegates.gates.timing import predicting
from finegates.modules.experts import is_experts
from finegates.modules.linear import find_linear, linear_shape
from finegates.modules.stock_methods import adapt_stock_methods
from finegates.modules.tying import move_tied_keys
from finegates.seeds import derive_seed

logger = logging.getLogger(__name__)


def attach(model: nn.Module, config: GateConfig | None = None) -> nn.Module:
    """Wraps the linear layers of a model in its dense sizes with gates, in place.

    Args:
        model: as for :func:`finegates.attach`, but not compact.
        config: defaults to ``GateConfig()``.

    Returns:
        the same model.

    Raises:
        ValueError: as for :func:`finegates.attach`, or the model is compact.
        TypeError: as for :func:`finegates.attach`.
    """
    check_config(config, GateConfig)
    config = config or GateConfig()
    inner = unwrap(model)
    if gated_layers(inner):
        raise ValueError("the model has gates already; call finegates.detach first")
    if config.modules is None:
        check_dense(inner)
    check_trainable(inner)
    if config.modules is None:
        check_registered(inner)
    preset = config.gate_preset()
    train_biases = preset.train_biases if config.train_biases is None else config.train_biases
    structure: Structure | None = None
    stream = adapter_for(inner).stream(inner) if config.width else None
    width: StochasticGate | None = None
    if stream is not None:
        width = _gate_maker(inner, config)("width", stream.size)
        width.of_stream = True
    if preset.penalty == "macs":
        outputs = None if width is None or stream is None else (width, stream.gated)
        structure, sides = _shared_gates(inner, config, outputs)
    else:
        sides = _independent_gates(inner, config)
    layers = _gated(inner, sides)
    head = head_parameters(inner) if config.train_head else {}

    # All checks are done: from here on the model changes.
    for name, parameter in inner.named_parameters():
        parameter.requires_grad_(
            (config.train_weights and parameter.is_floating_point()) or _is_low_rank(name)
        )
    if train_biases:
        for bias in _biases(inner, layers, config):
            bias.requires_grad_(True)
    _place(inner, layers)
    if stream is not None and width is not None:
        gate_outputs(inner, stream.gated, width)
    if config.random_biases:
        add_random_biases(inner, config.seed)
    for parameter in head.values():
        parameter.requires_grad_(parameter.is_floating_point())
    if structure is not None:
        inner.finegates_structure = structure  # type: ignore[assignment]
    inner.finegates_config = config  # type: ignore[assignment]
    logger.info(
        "attached %d gates to %d layers of %s (preset %s); target: remove %g %% of %s",
        sum(gate.latent.numel() for gate in leaf_gates(inner) if isinstance(gate, StochasticGate)),
        len(layers),
        type(inner).__name__,
        config.preset,
        100 * config.removed(),
        "the gates" if structure is None else "the MACs" if config.cost is None else "the time",
    )
    return model


@torch.no_grad()
def add_random_biases(model: nn.Module, seed: int) -> None:
    """Gives every gated linear layer without a bias a random, frozen one, in place.

    Entries are uniform in ±1/sqrt(in), as torch initialises biases; see ``GateConfig``.
    """
    for name, layer in gated_layers(model).items():
        linear = find_linear(layer.base)
        if linear.bias is not None:
            continue
        generator = torch.Generator().manual_seed(derive_seed(seed, name, "bias"))
        bias = (
            torch.rand(layer.out_features, generator=generator, dtype=torch.float32, device="cpu")
            .mul_(2)
            .sub_(1)
        )
        bias = (bias / layer.in_features**0.5).to(layer.weight)
        linear.bias = nn.Parameter(bias, requires_grad=False)


def attach_fixed(
    model: nn.Module, gates: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]]
) -> nn.Module:
    """Wraps layers with constant gates, in place.

    Args:
        model: a transformers model, or a ``peft`` model around one.
        gates: by module name, the values of the row gate (out,) and the column gate (in,); either
            may be None.

    Returns:
        the same model.
    """
    sides = {
        name: tuple(None if values is None else FixedGate(values) for values in pair)
        for name, pair in gates.items()
    }
    return attach_gates(model, sides)  # type: ignore[arg-type]


def attach_gates(model: nn.Module, sides: Sides) -> nn.Module:
    """Wraps layers with given gates, in place.

    Args:
        model: a transformers model, or a ``peft`` model around one.
        sides: by module name, the row gate (out,) and the column gate (in,), either may be None.

    Returns:
        the same model.

    Raises:
        ValueError: the model has no such layer, two names are the same layer, a module reads the
            weight of such a layer directly, or the sizes of a gate and its layer differ. The model
            does not change.
        TypeError: a layer is not linear-like, or quantised. The model does not change.
    """
    inner = unwrap(model)
    stacks = {path for path, module in inner.named_modules() if is_experts(module)}
    check_gateable(inner, [path for path in sides if path not in stacks])
    _place(inner, _gated(inner, sides))
    return model


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The task head's parameters by name, as the architecture's adapter says.

    Without an adapter, the head is every module outside the base model (``base_model_prefix`` of
    the class), and the pooler. A model without such a base model has no known head: the result is
    empty.
    """
    inner = unwrap(model)
    try:
        prefixes = adapter_for(inner).head(inner)
    except ValueError:
        prefixes = head_paths(inner) if base_prefix(inner) else []
    return {
        name: parameter
        for name, parameter in inner.named_parameters()
        if any(name == p or name.startswith(p + ".") for p in prefixes)
        # peft keeps an unused copy of the modules in modules_to_save.
        and ".original_module." not in name
    }


def _independent_gates(inner: nn.Module, config: GateConfig) -> Sides:
    """Makes a gate for each side of each layer."""
    make = _gate_maker(inner, config)
    sides: Sides = {}
    largest = 1
    for name in _modules_to_gate(inner, config):
        columns, outputs = linear_shape(inner.get_submodule(name))
        largest = max(largest, outputs * config.rows, columns * config.cols)
        sides[name] = (
            make(name, outputs, "rows") if config.rows else None,
            make(name, columns, "cols") if config.cols else None,
        )
    check_reachable(config.gate_preset(), config.removed(), largest)
    return sides


def _shared_gates(
    inner: nn.Module,
    config: GateConfig,
    width: tuple[StochasticGate, tuple[str, ...]] | None,
) -> tuple[Structure, Sides]:
    """Makes gates that follow the dependencies of the blocks, by part and by layer."""
    adapter = adapter_for(inner)
    check_gateable(inner, [path for block in adapter.blocks(inner) for path in block.linears()])
    stock = sizes_to_choose(inner) if config.uniform else None
    before, make = before_of(inner), _gate_maker(inner, config)

    def remade(name: str, size: int) -> StochasticGate:
        gate, mask = make(name, size), mask_of(before, name, size)
        if mask is not None:
            gate.before = mask
            gate.close(~mask.to(gate.latent.device))
        return gate

    structure, sides = build_structure(
        inner,
        remade,
        dimensions=config.dimensions,
        stock=stock,
        width=None if width is None else width[0],
        before=before,
        parts=config.parts,
    )
    if config.shrink:
        check_removable(inner, sides)
    # On the meta device nothing can be counted; such a model is a copy of one that was checked.
    if next(inner.parameters()).device.type != "meta":
        if config.cost is not None:
            predicting(config.cost).check_model(inner)
        penalty_on_macs(inner, structure, config, sides, width).check_reachable()
    return structure, sides


def _gated(inner: nn.Module, sides: Sides) -> dict[str, GatedLinear | GatedExperts]:
    """Wraps checked layers with their gates, by name; the model does not change."""
    layers: dict[str, GatedLinear | GatedExperts] = {}
    for name, (rows, cols) in sides.items():
        base = inner.get_submodule(name)
        if is_experts(base) and name.endswith(".base_layer"):
            raise ValueError(
                f"{name.removesuffix('.base_layer')} holds stacked experts with adapters of peft, "
                "which read the weights of what they wrap; leave the experts out of the adapters, "
                "for example by fg.add_lora or LoraConfig(target_modules=['q_proj', ...])"
            )
        try:
            if rows is None and cols is not None and is_experts(base):
                layers[name] = GatedExperts(base, cols).train(base.training)
            else:
                layer = GatedLinear(base, rows, cols).train(base.training)
                layer.saves_output = not is_changed_in_place(inner, name)
                layers[name] = layer
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return layers


def _biases(
    inner: nn.Module, layers: dict[str, GatedLinear | GatedExperts], config: GateConfig
) -> list[torch.Tensor]:
    """Biases that train with the gates: of gated layers, or of all layers of the blocks."""
    paths = [path for path, layer in layers.items() if isinstance(layer, GatedLinear)]
    if config.dimensions == "inner":
        paths = adapter_for(inner).gated(inner)
    found = (find_linear(inner.get_submodule(path)).bias for path in paths)
    return [bias for bias in found if isinstance(bias, torch.Tensor)]


def _place(inner: nn.Module, layers: dict[str, GatedLinear | GatedExperts]) -> None:
    """Replaces base layers by gated ones, in place."""
    for name, layer in layers.items():
        inner.set_submodule(name, layer)
        move_tied_keys(inner, name, f"{name}.base")
    if layers:
        watch_weights(inner)
    adapt_stock_methods()


def _gate_maker(inner: nn.Module, config: GateConfig) -> Callable[..., StochasticGate]:
    preset = config.gate_preset()
    device = next(inner.parameters()).device

    def make(name: str, size: int, *names: str) -> StochasticGate:
        generator = torch.Generator().manual_seed(derive_seed(config.seed, name, *names))
        gate = StochasticGate(size, preset, generator=generator, device=device)
        gate.configured = True
        return gate

    return make


def _modules_to_gate(inner: nn.Module, config: GateConfig) -> list[str]:
    if config.modules is None:
        names = list(adapter_for(inner).gated(inner))
    else:
        names = matching_layers(inner, config.modules)
    check_gateable(inner, names)
    return names


def _is_low_rank(name: str) -> bool:
    return ".lora_" in name
