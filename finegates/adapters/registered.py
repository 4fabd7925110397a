"""Descriptions that a process adds, and what is checked of them.

Those of the library are tested; one that is written by hand may name what its modules do not have.
"""

from __future__ import annotations

import difflib
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn
from transformers.activations import ACT2FN

from finegates.adapters.names import class_name, names_of
from finegates.adapters.parts import resolved
from finegates.modules.kinds import CompactLayer, between_gates
from finegates.modules.linear import looks_linear
from finegates.specs import AttentionSpec, FeedForwardSpec, MixerSpec, StreamSpec

logger = logging.getLogger(__name__)

Spec = AttentionSpec | FeedForwardSpec | MixerSpec | StreamSpec

REGISTERED: dict[tuple[type, str], Spec] = {}
"""What was added to the descriptions in this process, by kind and class."""


def label(spec: Spec) -> str:
    """A spec in messages: ``AttentionSpec of own.Attention``."""
    return f"{type(spec).__name__} of {', '.join(spec.classes)}"


def check_activation(spec: Spec) -> None:
    """Raises ValueError if a spec names an activation that transformers does not have."""
    name = spec.activation if isinstance(spec, FeedForwardSpec) else ""
    if name and name not in ACT2FN:
        near = difflib.get_close_matches(name, list(ACT2FN), 3, 0.5)
        raise ValueError(
            f"{label(spec)}: activation={name!r} is not a name in transformers' ACT2FN"
            + (f"; near it are {', '.join(near)}" if near else "")
        )


def registered() -> list[Spec]:
    """The specs that were registered in this process."""
    return list({id(spec): spec for spec in REGISTERED.values()}.values())


def registered_in(model: nn.Module) -> list[Spec]:
    """The registered specs of a model's modules."""
    names = set().union(*(names_of(kind) for kind in {type(m) for m in model.modules()}))  # type: ignore[arg-type]
    found = {id(spec): spec for (_, name), spec in REGISTERED.items() if name in names}
    return list(found.values())


def check_registered(model: nn.Module) -> None:
    """Checks the registered specs of a model's modules, and warns of misspelt classes.

    Args:
        model: plain, in its dense sizes, without gates.

    Raises:
        ValueError: a spec names a layer or an attribute that its module does not have; the message
            names the spec, its field, the module, and what that has.
    """
    for spec in registered_in(model):
        modules = [
            (path, module)
            for path, module in model.named_modules()
            if _is_of(module, spec) and not hasattr(module, "finegates_heads")
        ]
        when = getattr(spec, "when", None)
        modules = [(path, module) for path, module in modules if when is None or when(module)]
        fields = _layers_of(spec)
        having = [
            (path, module)
            for path, module in modules
            if any(_has(model, resolved(path, name)) for name in fields.values())
        ]
        # A class may have the part in some layers only.
        for path, module in having or modules[:1]:
            _check_layers(model, path, module, spec, fields)
            _check_attributes(model, path, module, spec)
    _warn_of_unknown_classes(model)


def _is_of(module: nn.Module, spec: Spec) -> bool:
    kind: Any = type(module)
    name = next((name for name in names_of(kind) if (type(spec), name) in REGISTERED), None)
    return name is not None and REGISTERED[type(spec), name] is spec


def _layers_of(spec: Spec) -> Mapping[str, str]:
    """The linear layers that every module of a spec has: field and name."""
    if isinstance(spec, AttentionSpec):
        return {"q": spec.q, "k": spec.k, "v": spec.v, "o": spec.o}
    if isinstance(spec, FeedForwardSpec):
        gate = {} if spec.gate is None else {"gate": spec.gate}
        return {"up": spec.up, **gate, "down": spec.down}
    return {}


def _check_layers(
    model: nn.Module, path: str, module: nn.Module, spec: Spec, fields: Mapping[str, str]
) -> None:
    for field, name in fields.items():
        if not _has(model, resolved(path, name)):
            there = [each for each, m in module.named_modules() if _is_layer(m)]
            if name.startswith("^"):
                around, _, own = path.rpartition(".")
                there += [
                    f"^{each}"
                    for each, m in model.get_submodule(around).named_modules()
                    if _is_layer(m) and not each.startswith(f"{own}.")
                ]
            raise ValueError(
                f"{label(spec)}: {field}={name!r}, but it is not a linear layer of "
                f"{_at(path, module)}; that has {', '.join(there) or 'none'}"
            )


def _check_attributes(model: nn.Module, path: str, module: nn.Module, spec: Spec) -> None:
    for field, names in _attributes_of(spec, module):
        if not any(_has_attribute(model, resolved(path, name)) for name in names):
            name = "|".join(names)
            is_one = field in ("width", "phi")
            said = f"={name!r}, but it" if is_one else f" names {name!r}, which"
            raise ValueError(
                f"{label(spec)}: {field}{said} is not an attribute of {_at(path, module)}; that "
                f"has {_there(module, field)}"
            )


def _attributes_of(spec: Spec, module: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """Fields that name attributes, and the names of which one has to exist."""
    if isinstance(spec, FeedForwardSpec) and spec.phi is not None:
        yield "phi", spec.phi.split("|")
    if not isinstance(spec, AttentionSpec):
        return
    if isinstance(spec.width, str):
        yield "width", [spec.width]
    for field in ("sizes", "per_head"):
        yield from ((field, [name]) for name in getattr(spec, field))
    if spec.norm is not None:
        yield from (("norm", [name]) for name in spec.norm.names)
    if spec.rotary is not None and (spec.rotary.when is None or spec.rotary.when(module)):
        for name in (spec.rotary.rotated, spec.rotary.buffer):
            if isinstance(name, str):
                yield "rotary", [name]


def _there(module: nn.Module, field: str) -> str:
    """What a module has of the kind that a field names."""
    if field == "phi":
        names = [n for n, m in module.named_modules() if n and not _is_layer(m)]
        names += [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
    elif field in ("width", "sizes", "rotary"):
        names = [f"{n}={v}" for n, v in vars(module).items() if type(v) is int and n[0] != "_"]
    elif field == "norm":
        names = [n for n, m in module.named_children() if not _is_layer(m)]
    else:
        names = [n for n, _ in (*module.named_parameters(), *module.named_buffers())]
    return ", ".join(dict.fromkeys(names)) or "none"


def _warn_of_unknown_classes(model: nn.Module) -> None:
    """Warns of specs whose class is misspelt: its module has others in the model, and not it."""
    homes: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(type(module) for module in model.modules()):
        for known in kind.__mro__[: kind.__mro__.index(nn.Module)]:
            homes.setdefault(class_name(known).rpartition(".")[0], {})[class_name(known)] = known
    for (_, name), spec in REGISTERED.items():
        around = homes.get(name.rpartition(".")[0], {})
        if around and name not in around and not _defined(around.values(), name):
            near = difflib.get_close_matches(name, list(around), 3, 0.0)
            logger.warning(
                "%s: class %s does not exist, so this describes nothing in %s; near it are %s",
                label(spec),
                name,
                type(model).__name__,
                ", ".join(near),
            )


def _defined(classes: Iterable[type], name: str) -> bool:
    """Whether a module that defines some classes also has one of a name in specs."""
    modules = (sys.modules.get(kind.__module__) for kind in classes)
    return any(hasattr(module, name.rpartition(".")[2]) for module in modules)


def _at(path: str, module: nn.Module) -> str:
    return f"{path or 'the model'} ({type(module).__name__})"


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, CompactLayer) or looks_linear(between_gates(module))


def _has(model: nn.Module, path: str) -> bool:
    """Whether there is a linear layer at a path."""
    try:
        return _is_layer(model.get_submodule(path))
    except AttributeError:
        return False


def _has_attribute(model: nn.Module, path: str) -> bool:
    owner, _, name = path.rpartition(".")
    try:
        return hasattr(model.get_submodule(owner), name)
    except AttributeError:
        return False
