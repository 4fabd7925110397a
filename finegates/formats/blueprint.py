"""Blueprint of a gated model: plain values from which it can be rebuilt.

A blueprint contains the class and configuration of transformers, the LoRA adapters of ``peft``
(around the model or inside it), and the places and kinds of gates. It has no tensors. A new
blueprint is checked by rebuilding the model: models whose tensors it does not reproduce in name and
size are refused.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor, nn

from finegates.adapters import adapter_for, unwrap
from finegates.compaction.cost import CostModel
from finegates.compaction.removal import keep_positions, positions_kept
from finegates.extras import needed_for
from finegates.formats.bounds import check_numbers
from finegates.formats.generation import generation_settings, set_generation
from finegates.formats.module_settings import check_modules, set_seen_lengths
from finegates.formats.skeleton import empty_model
from finegates.formats.structure import bare_model, check_class, parts_of
from finegates.gates.attachment import attach, attach_gates
from finegates.gates.config import GateConfig
from finegates.gates.dense_form import in_dense_sizes
from finegates.gates.gate import FixedGate, Gate
from finegates.gates.gated_linear import gated_layers, leaf_gates
from finegates.gates.gated_output import gate_outputs, width_gate
from finegates.gates.parts import LOST
from finegates.gates.presets import GatePreset
from finegates.gates.removed_before import before_of, lost_of, record_of, set_before, set_lost
from finegates.gates.shared import Before
from finegates.gates.stochastic import StochasticGate
from finegates.modules.linear import linear_shape

# With these settings peft builds plain LoRA. Others load files, import modules, or add something
# other than low-rank factors.
_LORA = (
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "bias"),
    *("fan_in_fan_out", "modules_to_save", "task_type", "inference_mode", "use_rslora"),
    *("use_dora", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern"),
    *("lora_bias", "trainable_token_indices", "ensure_weight_tying", "peft_type"),
    *("peft_version", "base_model_name_or_path", "revision", "init_lora_weights"),
)
# A dimension may have lost all but one in so many of its entries while it was trained.
_LEFT = 64
# Provenance only: these settings do not affect the modules.
_SAID = ("peft_version", "base_model_name_or_path", "revision", "init_lora_weights")


def draw(model: nn.Module) -> dict[str, Any]:
    """Makes the blueprint of a gated model, as plain values that JSON can hold.

    Args:
        model: gated, plain or wrapped by ``peft``, of a class that the auto-classes of transformers
            list.

    Raises:
        ValueError: the model cannot be rebuilt from a blueprint; the message says why.
    """
    plain, kept = in_dense_sizes(unwrap(model)), positions_kept(model)
    check_class(plain)
    base = parts_of(plain)
    bare_model(base, plain)
    values = {
        "plain": {**base, "generation_config": generation_settings(plain)},
        "adapters": _adapters(model),
        "gates": _gates(plain),
        "trainable": [name for name, p in model.named_parameters() if p.requires_grad],
    }
    built = build(values, kept=kept)
    for gate, other in zip(leaf_gates(model), leaf_gates(built), strict=False):
        if isinstance(gate, StochasticGate) and isinstance(other, StochasticGate):
            # The first is stored with the tensors, the second belongs to this process.
            other.hardness, other.led = gate.hardness, gate.led
    _check_tensors(model, built)
    check_modules(model, built)
    return values


def build(
    values: dict[str, Any],
    largest: int | None = None,
    kept: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
) -> nn.Module:
    """Builds the model of a blueprint on the meta device, in evaluation mode.

    Args:
        values: from :func:`draw`.
        largest: the largest dimension among the stored tensors; a blueprint that asks for more is
            refused before such a module is made.
        kept: the dimensions that gates have, where others were removed while training
            (:func:`finegates.compaction.removal.positions_kept`).

    Raises:
        ValueError: the values are inconsistent.
    """
    base = values["plain"]
    check_numbers(base["config"])
    plain = empty_model(dict(base))
    set_seen_lengths(plain, base["seen_lengths"])
    if largest is not None:
        for name, parameter in plain.named_parameters():
            if max(parameter.shape, default=0) > largest * (_LEFT if kept else 1):
                raise ValueError(f"{name} would be larger than every stored tensor")
    set_generation(plain, base["generation_config"])
    model = _with_adapters(plain, values["adapters"])
    for path, masks in values["gates"].get("removed", {}).items():
        before = {name: _mask(*mask) for name, mask in masks.items()}
        set_before(plain.get_submodule(path), before)
    for path, masks in values["gates"].get("lost", {}).items():
        lost = {name: _mask(*mask) for name, mask in masks.items()}
        set_lost(plain.get_submodule(path), lost)
    for path, config in values["gates"]["configs"].items():
        attach(plain.get_submodule(path), _gate_config(config))
    sides = {}
    for path, kinds in values["gates"]["layers"].items():
        columns, outputs = linear_shape(plain.get_submodule(path))
        sides[path] = (_gate(kinds["rows"], outputs), _gate(kinds["cols"], columns))
    attach_gates(plain, sides)
    output = values["gates"].get("outputs")
    if output is not None:
        stream = adapter_for(plain).stream(plain)
        gate = _gate(output, stream.size)
        assert gate is not None
        gate_outputs(plain, stream.gated, gate)
    if kept:
        keep_positions(plain, kept)
    if values["adapters"] is not None:
        _set_uses(model, values["adapters"])
    trainable = set(values["trainable"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    return model.eval()


def _check_tensors(model: nn.Module, built: nn.Module) -> None:
    """Raises ValueError unless both models have tensors of the same names and sizes."""
    ours, theirs = (
        {
            name: tuple(tensor.shape)
            for named in (m.named_parameters, m.named_buffers)
            for name, tensor in named(remove_duplicate=False)
        }
        for m in (model, built)
    )
    differing = [n for n in (*ours, *theirs) if ours.get(n) != theirs.get(n)]
    if differing:
        raise ValueError(
            f"{type(unwrap(model)).__name__}, its configuration, adapters and gate placement "
            f"do not reproduce {differing[0]} of this model"
        )


def _gates(plain: nn.Module) -> dict[str, Any]:
    """Gates attached by a configuration, and all other gates layer by layer."""
    configs = {
        path: vars(module)["finegates_config"].as_dict()
        for path, module in plain.named_modules()
        if "finegates_config" in vars(module)
    }
    roots = tuple(f"{path}." if path else "" for path in configs)
    layers = {}
    for path, layer in gated_layers(plain).items():
        if roots and path.startswith(roots):
            continue
        kinds = {side: _kind(gate) for side, gate in layer.gates()}
        layers[path] = {"rows": kinds.get("rows"), "cols": kinds.get("cols")}
    modules = dict(plain.named_modules())
    removed = {path: _kept(masks) for path, m in modules.items() if (masks := before_of(m))}
    lost = {path: _kept(lost_of(m)) for path, m in modules.items() if LOST in record_of(m)}
    records = {"removed": removed, "lost": lost}
    gate = None if configs else width_gate(plain)
    outputs = {} if gate is None else {"outputs": _kind(gate)}
    found: dict[str, Any] = {"configs": configs, "layers": layers, **outputs}
    return {**found, **{name: record for name, record in records.items() if record}}


def _kept(masks: Before) -> dict[str, tuple[int, list[int]]]:
    """Sizes of masks and the positions that are true, by name."""
    return {n: (mask.numel(), mask.nonzero().flatten().tolist()) for n, mask in masks.items()}


def _mask(size: int, kept: list[int]) -> Tensor:
    """A mask (size,), true at some positions.

    Raises:
        ValueError: they do not increase within it.
    """
    index = torch.tensor(kept, dtype=torch.int64, device="cpu")
    if type(size) is not int or bool((index.diff() <= 0).any()) or not _within(index, size):
        raise ValueError("the dimensions that an earlier compaction left do not increase")
    return torch.zeros(size, dtype=torch.bool, device="cpu").index_fill_(0, index, True)


def _within(index: Tensor, size: int) -> bool:
    return not index.numel() or (int(index[0]) >= 0 and int(index[-1]) < size)


def _kind(gate: Gate) -> dict[str, Any]:
    if type(gate) is FixedGate:
        return {"kind": "fixed"}
    if type(gate) is StochasticGate:
        return {"kind": "stochastic", "preset": asdict(gate.preset)}
    raise ValueError(f"a {type(gate).__name__} was added without finegates.attach")


def _gate(values: dict[str, Any] | None, size: int) -> Gate | None:
    if values is None:
        return None
    if values["kind"] == "fixed":
        return FixedGate(torch.ones(size, dtype=torch.float32, device="cpu"))
    if values["kind"] != "stochastic":
        raise ValueError(f"unknown kind of gate {values['kind']!r}")
    preset = GatePreset(**values["preset"])
    for field in fields(GatePreset):
        kind = {"str": str, "bool": bool, "float": (float, int)}[str(field.type)]
        if not isinstance(getattr(preset, field.name), kind):  # type: ignore[arg-type]
            raise ValueError(f"a gate's preset has {field.name} = {getattr(preset, field.name)!r}")
    return StochasticGate(size, preset, device="meta")


def _gate_config(values: dict[str, Any]) -> GateConfig:
    frozen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    if frozen.get("cost") is not None:
        frozen["cost"] = CostModel.of(frozen["cost"])
    return GateConfig(**frozen)


def _adapters(model: nn.Module) -> dict[str, Any] | None:
    """The LoRA adapters: around the model by ``peft``, or inside it by transformers."""
    wrapped = unwrap(model) is not model
    configs = getattr(model, "peft_config", None)
    if not configs:
        return None
    active = _active(model)
    # Usually all modules of peft use the same adapters, and none of them is disabled.
    own = {
        path: {"active": names, "enabled": enabled}
        for path, (names, enabled) in _uses(model).items()
        if not enabled or names != active
    }
    return {
        "wrapped": wrapped,
        "active": active,
        "configs": {name: _lora_values(name, config) for name, config in configs.items()},
        **({"own": own} if own else {}),
    }


def _uses(model: nn.Module) -> dict[str, tuple[list[str], bool]]:
    """Names of the active adapters of each module of ``peft`` by path, and whether they are on."""
    return {
        path: (list(module.active_adapters), not module.disable_adapters)
        for path, module in unwrap(model).named_modules()
        if isinstance(getattr(module, "disable_adapters", None), bool)  # a method of models
    }


def _set_uses(model: nn.Module, adapters: Mapping[str, Any]) -> None:
    """Switches the modules that do not use the adapters that all others use.

    Raises:
        ValueError: the model lacks such a module or adapter.
    """
    known = _uses(model)
    for path, given in adapters.get("own", {}).items():
        if path not in known or not set(given["active"]) <= adapters["configs"].keys():
            raise ValueError(f"{path} does not have the adapters {given['active']}")
        module: Any = unwrap(model).get_submodule(path)
        module.set_adapter(given["active"])
        if not given["enabled"]:
            module.enable_adapters(False)


def _active(model: nn.Module) -> list[str]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    # Read from the layers, because the wrapper that peft returned may be gone.
    layers = (m for m in model.modules() if isinstance(m, BaseTunerLayer))
    if unwrap(model) is model and (layer := next(layers, None)) is not None:
        return list(layer.active_adapters)
    active: Any = model.active_adapters
    active = active() if callable(active) else active
    return [active] if isinstance(active, str) else list(active)


def _lora_values(name: str, config: Any) -> dict[str, Any]:
    from peft import LoraConfig

    if type(config) is not LoraConfig:
        raise ValueError(f"adapter {name!r} has a {type(config).__name__}, not plain LoRA")
    plain = LoraConfig().to_dict()
    given = config.to_dict()
    for key, value in given.items():
        if key not in _LORA and key != "auto_mapping" and value != plain.get(key):
            raise ValueError(f"adapter {name!r} sets {key}, which a blueprint cannot describe")
    values = {key: _plain(given[key]) for key in _LORA if key in given}
    if not isinstance(values["init_lora_weights"], bool | str | None):
        raise ValueError(f"adapter {name!r} has an initialisation that a blueprint cannot describe")
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return getattr(value, "value", value)  # an enumeration of peft's


def _with_adapters(plain: nn.Module, adapters: dict[str, Any] | None) -> nn.Module:
    if adapters is None:
        return plain
    configs = dict(_lora_configs(adapters["configs"]))
    model = plain
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, config in configs.items():
            if not adapters["wrapped"]:
                plain.add_adapter(config, name)  # type: ignore[operator]
            elif model is plain:
                from peft import get_peft_model

                model = get_peft_model(
                    plain,
                    config,
                    adapter_name=name,
                    autocast_adapter_dtype=False,
                )
            else:
                model.add_adapter(name, config)  # type: ignore[operator]
    active = adapters["active"]
    if active != _active(model):
        target: Any = model if len(active) == 1 or not adapters["wrapped"] else model.base_model
        target.set_adapter(active[0] if len(active) == 1 else active)
    for name, values in adapters["configs"].items():
        for key in _SAID:
            setattr(model.peft_config[name], key, values.get(key))  # type: ignore[index]
    return model


def _lora_configs(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    with needed_for("a model with adapters", "peft"):
        from peft import LoraConfig

    for name, given in values.items():
        unknown = sorted(given.keys() - set(_LORA))
        if unknown or given.get("peft_type") != "LORA":
            raise ValueError(
                f"adapter {name!r} has settings that plain LoRA does not have: {unknown}"
            )
        known = {k: copy.deepcopy(v) for k, v in given.items() if k not in (*_SAID, "peft_type")}
        yield name, LoraConfig(**known)


__all__ = ["build", "draw"]
