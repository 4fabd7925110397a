"""Putting gates onto a model and taking them off again."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from finegates.adapters import adapter_for, unwrap
from finegates.adapters.base import base_prefix, head_paths
from finegates.gates import FixedGate, StochasticGate
from finegates.layers import (
    GatedLinear,
    dense_weight,
    find_linear,
    gated_layers,
    linear_shape,
    looks_linear,
)
from finegates.penalty import PENALTIES, KurtosisWeights, SparsityPenalty
from finegates.presets import (
    SCHEDULE,
    GatePreset,
    check_reachable,
    check_schedule,
    preset_named,
)
from finegates.seeds import derive_seed
from finegates.structured import MacsPenalty, Sides, Structure, build_structure
from finegates.tying import move_tied_keys, note_untied, untie

# They multiply by their layers' weights without calling the layers, the second in evaluation only.
_READ_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass(frozen=True)
class GateConfig:
    """How gates are attached and trained.

    Attributes:
        preset: ``"structured"`` (shared gates under a budget on MACs), ``"reference"`` (the paper's
            released code) or ``"paper_v1"``; see ``finegates.presets.PRESETS``. None takes
            ``"structured"``, or ``"reference"`` where ``penalty``, ``kurtosis``, ``rows``, ``cols``
            or ``modules`` asks for what only independent gates have. Read back, it is the name.
        target: target sparsity s in [0, 1): the fraction of rows, and of columns, to close. It is
            not the realised sparsity; ``finegates.budget`` measures that. With ``"structured"``,
            the fraction of the encoder's MACs to remove, which is met.
        penalty_weight: lambda, the factor of the penalty in the loss.
        penalty: ``"target"`` or ``"hinge"``; None takes the preset's, and ``"structured"`` has no
            other.
        kurtosis: weight the penalty by the kurtosis of what flows through rows and columns.
        noise_std: another training noise than the preset's.
        rows: gate the outputs of layers.
        cols: gate the inputs of layers.
        modules: patterns (``fnmatch``) of the module names to gate, in place of the choice of the
            architecture's adapter; an architecture without one needs them.
        train_biases: train the biases of gated layers; None takes the preset's.
        train_head: train the task head (:func:`head_parameters`). Where none is known, because the
            model is not laid out as those of transformers are, nothing is trained for it: set
            ``requires_grad`` after attaching.
        train_weights: train every weight beside the gates.
        sequence_length: with ``"structured"``, tokens of a sequence, for the MACs of attention.
        schedule: with ``"structured"``, four parts of the training in [0, 1]: when the budget
            begins to fall; when it has reached its target; when it is decided who is closed; when
            every gate is zero or one. While the budget falls, what matters least for its cost is
            closed, a hundredth of the training at a time. Between the last two the gates move
            evenly to zero or one; afterwards the rest is trained.
        random_biases: give gated layers that have no bias a random, frozen one, drawn as torch
            draws biases. The released code does this to every linear layer of a Llama, by mistake:
            the model computes something else from the first step on. For audits only.
        seed: of the gates' initial latents; each gate's stream is named by its module.
    """

    preset: str | None = None
    target: float = 0.4
    penalty_weight: float = 50.0
    penalty: str | None = None
    kurtosis: bool = False
    noise_std: float | None = None
    rows: bool = True
    cols: bool = True
    modules: tuple[str, ...] | None = None
    train_biases: bool | None = None
    train_head: bool = True
    train_weights: bool = False
    sequence_length: int = 128
    schedule: tuple[float, float, float, float] = SCHEDULE
    random_biases: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        asked = self._only_independent()
        if self.preset is None:
            # The class is frozen for its users; what None stands for is settled once, here.
            object.__setattr__(self, "preset", "reference" if asked else "structured")
        preset = self.gate_preset()
        if self.penalty is not None and self.penalty not in PENALTIES:
            raise ValueError(f"unknown penalty {self.penalty!r}; choose one of {sorted(PENALTIES)}")
        if not self.penalty_weight >= 0:
            raise ValueError(f"penalty_weight must be at least 0, got {self.penalty_weight}")
        if not (self.rows or self.cols):
            raise ValueError("rows and cols are both off: there would be no gates")
        check_reachable(preset, self.target)
        if preset.penalty == "macs":
            if asked:
                raise ValueError(
                    f"{asked[0]} cannot be chosen with preset {self.preset!r}, whose gates follow "
                    "the structure of the model; independent gates can: preset='reference'"
                )
            self._check_structured()

    def gate_preset(self) -> GatePreset:
        """The constants of the gates, with the noise that was asked for."""
        assert self.preset is not None
        return preset_named(self.preset, self.noise_std)

    def _only_independent(self) -> list[str]:
        """The options given that shared gates do not have, by name."""
        given = {
            "penalty": self.penalty is not None,
            "kurtosis": self.kurtosis,
            "rows": not self.rows,
            "cols": not self.cols,
            "modules": self.modules is not None,
        }
        return [name for name, asked in given.items() if asked]

    def _check_structured(self) -> None:
        check_schedule(self.schedule)
        if self.sequence_length < 1:
            raise ValueError(f"sequence_length must be at least 1, got {self.sequence_length}")

    def as_dict(self) -> dict[str, Any]:
        """The configuration as plain values."""
        return asdict(self)


def attach(model: nn.Module, config: GateConfig | None = None) -> nn.Module:
    """Wraps the model's linear layers with stochastic gates, in place.

    What is trained afterwards is what the preset says: the gates, the biases of gated layers, the
    task head, and low-rank factors that ``peft`` has put inside; everything else is frozen. Other
    methods of ``peft`` than plain LoRA must be merged, by ``peft``, before the model is compacted.

    Args:
        model: a transformers model, or a ``peft`` model around one.
        config: defaults to ``GateConfig()``.

    Returns:
        the same model.

    Raises:
        ValueError: gates are attached already, a pattern matches no layer or one whose weight the
            module around it reads itself, or the architecture has no adapter and no patterns are
            given; or the model is compact, or spread over several devices.
        TypeError: a layer to be gated is not linear-like, or quantised.
    """
    config = config or GateConfig()
    inner = unwrap(model)
    if gated_layers(inner):
        raise ValueError("the model has gates already; call finegates.detach first")
    if config.modules is None:
        _check_dense(inner)
    devices = sorted({str(parameter.device) for parameter in inner.parameters()})
    if len(devices) > 1:
        raise ValueError(
            f"the model is spread over {', '.join(devices)}, but the penalty joins all gates on "
            "one device; load it without device_map, and use several devices by torchrun, each "
            "with a whole model"
        )
    preset = config.gate_preset()
    train_biases = preset.train_biases if config.train_biases is None else config.train_biases
    structured = preset.penalty == "macs"
    sides = _shared_gates(inner, config) if structured else _independent_gates(inner, config)

    for name, parameter in inner.named_parameters():
        parameter.requires_grad_(config.train_weights or _is_low_rank(name))
    attach_gates(inner, sides)
    for layer in gated_layers(inner).values():
        if train_biases and layer.bias is not None:
            layer.bias.requires_grad_(True)
    if config.random_biases:
        add_random_biases(inner, config.seed)
    if config.train_head:
        for parameter in head_parameters(inner).values():
            parameter.requires_grad_(True)
    inner.finegates_config = config  # type: ignore[assignment]
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
        bias = torch.rand(layer.out_features, generator=generator).mul_(2).sub_(1)
        bias = (bias / layer.in_features**0.5).to(layer.weight)
        linear.bias = nn.Parameter(bias, requires_grad=False)


def attach_fixed(
    model: nn.Module, gates: dict[str, tuple[torch.Tensor | None, torch.Tensor | None]]
) -> nn.Module:
    """Wraps layers with constant gates, in place; what is trained stays as it is.

    Args:
        model: a transformers model, or a ``peft`` model around one.
        gates: by module name, the values of the row gate (out,) and the column gate (in,), either
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
    """Wraps layers with given gates, in place; what is trained stays as it is.

    Args:
        model: a transformers model, or a ``peft`` model around one.
        sides: by module name, the row gate (out,) and the column gate (in,), either may be None.

    Returns:
        the same model.

    Raises:
        ValueError: a module reads the weight of one of the layers itself; nothing is changed.
        TypeError: a layer is not linear-like, or quantised; nothing is changed.
    """
    inner = unwrap(model)
    for name in sides:
        _check_gateable(inner, name)
    for name, (rows, cols) in sides.items():
        base = inner.get_submodule(name)
        _replace(inner, name, GatedLinear(base, rows, cols).train(base.training))
        move_tied_keys(inner, name, f"{name}.base")
    return model


@torch.no_grad()
def hold_gates(model: nn.Module) -> nn.Module:
    """Makes every gate a constant, its evaluation value, in place; there is no penalty any more.

    Args:
        model: with or without gates.

    Returns:
        the same model; in evaluation mode it computes what it did before.
    """
    inner = unwrap(model)
    for layer in gated_layers(inner).values():
        for side, gate in list(layer.gates()):
            setattr(layer, side, FixedGate(gate.value()).train(layer.training))
    for name in ("finegates_config", "finegates_structure"):
        inner.__dict__.pop(name, None)
    return model


def detach(model: nn.Module, *, fold: bool = False) -> nn.Module:
    """Takes the gates off, in place.

    Args:
        model: with or without gates.
        fold: multiply the evaluation gates into weights and biases, so that the model without gates
            computes what the gated one did in evaluation mode (up to rounding). Needs plain linear
            layers: merge low-rank adapters first, or use ``finegates.compact``. A layer that shares
            its weight with the embeddings gets one of its own.

    Returns:
        the same model; with ``fold=False`` it computes what it did before gates were attached, but
        for what training changed in biases, head and low-rank factors.

    Raises:
        ValueError: ``fold`` and a layer holds an unmerged low-rank adapter.
    """
    inner = unwrap(model)
    layers = gated_layers(inner)
    if fold:
        for name, layer in layers.items():
            if find_linear(layer.base) is not layer.base and not getattr(
                layer.base, "merged", False
            ):
                raise ValueError(
                    f"layer {name} holds an unmerged low-rank adapter; merge it first, or call "
                    "finegates.compact, which merges"
                )
        for name, layer in layers.items():
            untie(inner, f"{name}.base")
            _fold(layer)
    for name, layer in layers.items():
        _replace(inner, name, layer.base)
        move_tied_keys(inner, f"{name}.base", name)
    note_untied(inner, separate=True)
    for name in ("finegates_config", "finegates_structure"):
        inner.__dict__.pop(name, None)
    return model


def gate_config(model: nn.Module) -> GateConfig | None:
    """The configuration that the model's gates were attached with, or None."""
    config = getattr(unwrap(model), "finegates_config", None)
    assert config is None or isinstance(config, GateConfig)
    return config


def sparsity_penalty(model: nn.Module) -> SparsityPenalty | MacsPenalty | None:
    """The penalty that the attached configuration asks for, or None without trainable gates."""
    config = gate_config(model)
    if config is None:
        return None
    kind = config.penalty or config.gate_preset().penalty
    inner = unwrap(model)
    if kind == "macs":
        structure: Structure = inner.finegates_structure  # type: ignore[assignment]
        return MacsPenalty(structure, config.target, config.sequence_length, config.schedule[:2])
    kurtosis = KurtosisWeights(inner) if config.kurtosis else None
    return SparsityPenalty(inner, config.target, kind, kurtosis)


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The task head's parameters by name, as the architecture's adapter says.

    Without an adapter it is what stands beside the base model that the class names
    (``base_model_prefix``), and that one's pooler. A model without such a base model has no known
    head: the result is empty.
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
        # peft keeps an unused copy of modules that it trains whole.
        and ".original_module." not in name
    }


def _independent_gates(inner: nn.Module, config: GateConfig) -> Sides:
    """A gate for every side of every layer."""
    make = _gate_maker(inner, config)
    sides: Sides = {}
    for name in _modules_to_gate(inner, config):
        columns, outputs = linear_shape(inner.get_submodule(name))
        sides[name] = (
            make(name, outputs, "rows") if config.rows else None,
            make(name, columns, "cols") if config.cols else None,
        )
    return sides


def _shared_gates(inner: nn.Module, config: GateConfig) -> Sides:
    """Gates along the dependencies of the blocks; the model remembers which they are."""
    for name in adapter_for(inner).gated(inner):
        _check_gateable(inner, name)
    structure, sides = build_structure(inner, _gate_maker(inner, config))
    inner.finegates_structure = structure  # type: ignore[assignment]
    return sides


def _gate_maker(inner: nn.Module, config: GateConfig) -> Callable[..., StochasticGate]:
    preset = config.gate_preset()
    device = next(inner.parameters()).device

    def make(name: str, size: int, *names: str) -> StochasticGate:
        generator = torch.Generator().manual_seed(derive_seed(config.seed, name, *names))
        return StochasticGate(size, preset, generator=generator, device=device)

    return make


def _modules_to_gate(inner: nn.Module, config: GateConfig) -> list[str]:
    if config.modules is None:
        names = list(adapter_for(inner).gated(inner))
    else:
        names = _matching(inner, config.modules)
    for name in names:
        _check_gateable(inner, name)
    return names


def _matching(inner: nn.Module, patterns: tuple[str, ...]) -> list[str]:
    """The linear layers that patterns name, also those that no gates can go around."""
    names: list[str] = []
    linear = [name for name, m in inner.named_modules() if looks_linear(m)]
    # Compact layers are not gated, and neither is the product inside one.
    compact = _compact_paths(inner)
    linear = [n for n in linear if not any(n.startswith(f"{path}.") for path in compact)]
    # A LoRA layer contains linears of its own; the outermost one is the layer to gate.
    linear = [n for n in linear if not any(n.startswith(other + ".") for other in linear)]
    for pattern in patterns:
        matched = [name for name in linear if fnmatch.fnmatch(name, pattern)]
        if not matched:
            raise ValueError(f"pattern {pattern!r} matches no linear layer of the model")
        names += [name for name in matched if name not in names]
    return names


def _check_gateable(inner: nn.Module, name: str) -> None:
    """Raises TypeError or ValueError, with the layer's name, unless gates around it would work."""
    try:
        linear = find_linear(inner.get_submodule(name))
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None
    around = inner.get_submodule(name.rpartition(".")[0])
    # torch marks by this class what its attention reads, also where others have copied that.
    if isinstance(linear, NonDynamicallyQuantizableLinear) or isinstance(around, _READ_WEIGHTS):
        raise ValueError(
            f"{name}: {type(around).__name__} reads the weight of this layer itself, so gates "
            "around the layer would be passed over; exclude it: let each pattern match the other "
            "layers only"
        )


def _compact_paths(inner: nn.Module) -> list[str]:
    from finegates.compaction.layers import CompactLinear

    return [name for name, module in inner.named_modules() if isinstance(module, CompactLinear)]


def _check_dense(inner: nn.Module) -> None:
    """Raises ValueError for a compact model, whose parts are not what adapters describe."""
    for name in _compact_paths(inner):
        raise ValueError(
            f"{name} is compact already; put gates around what finegates.uniform(model) gives, "
            "or around named plain layers (GateConfig(modules=...))"
        )


def _is_low_rank(name: str) -> bool:
    return ".lora_" in name


@torch.no_grad()
def _fold(layer: GatedLinear) -> None:
    weight, bias = dense_weight(layer.base)
    if layer.cols is not None:
        weight.mul_(layer.cols.value().to(weight.dtype))
    if layer.rows is not None:
        rows = layer.rows.value().to(weight.dtype)
        weight.mul_(rows[:, None])
        if bias is not None:
            bias.mul_(rows)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
