"""The dense form of a model from which dimensions were removed while training.

Rules of compaction, counts and reports see a model in its dense sizes. After a removal the model
itself has smaller layers, so it carries a copy without numbers: the dense gated model on the meta
device, whose gates are constants, a zero where a dimension was removed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from finegates.gates.gate import FixedGate, Gate
from finegates.gates.gated_linear import GatedLinear, gated_layers
from finegates.gates.parts import DENSE
from finegates.gates.stochastic import StochasticGate
from finegates.wrappers import own_forward

Kept = tuple[Tensor, Tensor]
"""Kept rows and columns of a layer among the dense ones, int64, increasing."""


@dataclass
class DenseForm:
    """What a model was before dimensions were removed from it.

    Attributes:
        model: the dense gated model, without numbers; buffers have their values.
        gates: the gates of the present model, each with its constant in ``model``, by the path of
            the constant.
        layers: what the present model keeps of each layer that became smaller, by dense path.
        heads: paths of the attentions that have fewer or narrower heads.
        wide: paths of the attentions whose heads keep their width.
        whole: paths of the attentions that keep their heads; None if that is not known yet.
        settings: what :func:`settings_of` gave for the present model when dimensions were removed.
        changed: settings that changed between removals.
    """

    model: nn.Module
    gates: dict[str, tuple[StochasticGate, FixedGate]]
    layers: dict[str, Kept] = field(default_factory=dict)
    heads: tuple[str, ...] = ()
    wide: frozenset[str] = frozenset()
    whole: frozenset[str] | None = None
    settings: dict[str, str] = field(default_factory=dict)
    changed: tuple[str, ...] = ()

    def note_settings(self, model: nn.Module, *, before: bool) -> None:
        """Notes the settings of the present model, before and after dimensions are removed."""
        if before:
            self.changed = self.differences(model)
        else:
            self.settings = settings_of(model)

    def differences(self, model: nn.Module) -> tuple[str, ...]:
        """Settings of the present model that are not those when dimensions were removed.

        They are not in the dense form, so that they would be lost.
        """
        now = settings_of(model) if self.settings else {}
        names = sorted(self.settings.keys() | now.keys())
        found = [name for name in names if self.settings.get(name) != now.get(name)]
        return tuple(dict.fromkeys((*self.changed, *found)))

    @classmethod
    def of(cls, model: nn.Module) -> DenseForm:
        """The dense form of a gated model, before anything is removed from it.

        Args:
            model: gated, plain; it does not change.
        """
        gates = [m for m in model.modules() if isinstance(m, StochasticGate)]
        constants = [
            FixedGate(torch.ones(gate.dense_size, dtype=torch.float32, device="cpu"))
            for gate in gates
        ]
        memo: dict[int, object] = {}
        for gate, constant in zip(gates, constants, strict=True):
            memo[id(gate)] = constant
        for parameter in model.parameters():
            # Not empty_like, which tensors of quantisation libraries do not have.
            empty = torch.empty_strided(
                parameter.shape, parameter.stride(), dtype=parameter.dtype, device="meta"
            )
            memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        config = getattr(model, "config", None)
        memo[id(config)] = config
        dense = copy.deepcopy(model, memo)
        for module in dense.modules():
            if isinstance(module, FixedGate):  # of dimensions without gates of their own
                module.values = module.values.cpu()
        paths = {id(m): path for path, m in dense.named_modules()}
        return cls(
            dense,
            {paths[id(c)]: (gate, c) for gate, c in zip(gates, constants, strict=True)},
        )

    @torch.no_grad()
    def read(self, values: Callable[[StochasticGate], Tensor]) -> nn.Module:
        """The dense model, its gates set to what is read of the present ones.

        Args:
            values: gives (n,) of the present dimensions.
        """
        for gate, constant in self.gates.values():
            constant.values = gate.spread(values(gate)).float().cpu()
        return self.model

    def positions(self) -> dict[str, list[int]]:
        """The dimensions that the gates still have, where some were removed."""
        return {
            path: gate.positions.tolist()
            for path, (gate, _) in self.gates.items()
            if gate.positions is not None
        }


def settings_of(model: nn.Module) -> dict[str, str]:
    """Classes, replaced forwards and plain attributes of all modules, by name.

    Left out are gates, what training switches, warnings that were given, and lengths that rotary
    embeddings have seen.
    """
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, Gate):
            continue
        parameters = sorted(name for name, p in module._parameters.items() if p is not None)
        found[path] = f"{type(module).__qualname__} {parameters}"
        replaced = own_forward(module)
        if replaced is not None:
            name = getattr(replaced, "__qualname__", type(replaced).__qualname__)
            found[f"{path}.forward".lstrip(".")] = name
        for name, value in vars(module).items():
            own = name.startswith("_") or "seq_len" in name or name in _SWITCHED
            if (not own or name in _SETTINGS) and _is_plain(value):
                found[f"{path}.{name}".lstrip(".")] = repr(value)
    return found


_SETTINGS = {"_disable_adapters", "_active_adapter"}
_SWITCHED = {"training", "gradient_checkpointing", "is_gradient_checkpointing", "warnings_issued"}


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(each) for each in value.values())
    if isinstance(value, list | tuple | set):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, bool | int | float | str)


def dense_form(model: nn.Module) -> DenseForm | None:
    """The dense form that a plain model carries, or None if nothing was removed from it."""
    found: DenseForm | None = vars(model).get(DENSE)
    return found


def in_dense_sizes(model: nn.Module) -> nn.Module:
    """A model in its dense sizes, for plans and counts.

    Args:
        model: any; it does not change.

    Returns:
        the model itself if nothing was removed from it; otherwise one whose gates are constants,
        and whose gated models are on the meta device.
    """
    dense = {
        path: form.read(lambda gate: gate.value())
        for path, module in model.named_modules()
        if (form := dense_form(module)) is not None
    }
    if not dense:
        return model
    if "" in dense:
        return dense[""]
    return copy.deepcopy(model, {id(model.get_submodule(path)): m for path, m in dense.items()})


def check_whole(model: nn.Module, asked: str) -> None:
    """Raises ValueError if dimensions were removed from a model.

    Args:
        model: any.
        asked: the function that needs all of them.
    """
    for path, module in model.named_modules():
        if dense_form(module) is not None:
            raise ValueError(
                f"dimensions of {path or type(model).__name__} were removed before it was "
                f"gated, or while it was trained (GateConfig(shrink=True)), so {asked} cannot "
                "bring them back; "
                "finegates.compact gives the small model without gates"
            )


def dense_layers(model: nn.Module) -> dict[str, GatedLinear]:
    """The gated layers in their dense sizes, by the module names of the dense model.

    A layer of a model from which dimensions were removed has constant gates, which have the values
    of the present ones.
    """
    forms = {path: form for path, m in model.named_modules() if (form := dense_form(m)) is not None}
    if not forms:
        return gated_layers(model)
    roots = tuple(f"{path}." if path else "" for path in forms)
    found = {n: layer for n, layer in gated_layers(model).items() if not n.startswith(roots)}
    for root, form in zip(roots, forms.values(), strict=True):
        dense = form.read(lambda gate: gate.value())
        found |= {f"{root}{name}": layer for name, layer in gated_layers(dense).items()}
    return found
