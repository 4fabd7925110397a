"""A description of the modules of an unknown architecture, found by search and certified by replay.

Names of layers and attributes suggest how a module might be described. Each suggestion is tried on
the model's own layers: gates close some of every kind of dimension, the layer is compacted by the
suggested description, and both are called with what the layer got in an ordinary forward pass, in
float64. What is equal for every closure is kept; what is not is described with less freedom, or
left whole. The whole model is tried in the same way, because a layer does not show who else reads
what is inside it. The search uses random parameters, because one that starts at zero would hide
what depends on it; what it finds must be exact with the model's own parameters, too.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from finegates.adapters import AttentionSpec, register, unwrap
from finegates.adapters.described import DescribedAdapter
from finegates.adapters.names import class_name
from finegates.adapters.printed import registration
from finegates.modules.kinds import CompactLayer, has_gates
from finegates.modules.torch_layers import why_whole
from finegates.spec_search.candidates import attention_candidates, feed_candidates, linears_below
from finegates.spec_search.layers import find_layers, layer_calls
from finegates.spec_search.replay import Replay, Spec, randomise, restore
from finegates.specs import is_named_cross

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Description:
    """The specs that were found for a model.

    ``print(description)`` gives them as code to paste into a program, or into one of the modules
    that ``finegates/adapters/descriptions.py`` collects.

    Attributes:
        specs: certified on the model's layers.
        notes: what is left whole, and why.
    """

    specs: tuple[Spec, ...]
    notes: tuple[str, ...] = ()

    def register(self) -> None:
        """Makes the specs known to this process (:func:`finegates.adapters.register`)."""
        register(*self.specs)

    def __str__(self) -> str:
        return "\n".join([registration(self.specs), *(f"# {note}" for note in self.notes)])


def describe(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    seed: int = 0,
    known: DescribedAdapter | None = None,
) -> Description:
    """Finds descriptions of unknown attention and feed-forward modules.

    The model is copied in float64, and once or twice more while the whole is tried. Descriptions
    hold for its configuration and for inputs like those given: give padded ones, longer than its
    attention windows.

    Args:
        model: a transformers model without gates; it is not changed.
        inputs: keyword arguments of its forward.
        seed: of the closures that are tried.
        known: the descriptions that there are; all if None.

    Returns:
        specs of the classes that were found; empty if there are none, or all are known.

    Raises:
        ValueError: the inputs are not keyword arguments, or the model has gates or is compact.
    """
    plain = unwrap(model)
    if not isinstance(inputs, Mapping):
        raise ValueError(
            "inputs must be the keyword arguments of the model's forward, as a tokenizer gives "
            f"them, got {type(inputs).__name__}"
        )
    if has_gates(plain) or any(isinstance(m, CompactLayer) for m in plain.modules()):
        raise ValueError(
            f"{type(plain).__name__} has gates or is compact; describe the dense model, before "
            "finegates.attach"
        )
    double = copy.deepcopy(plain).double().eval()
    randomise(double, seed)
    known = known or DescribedAdapter()
    cross = {
        type(module) for path, module in double.named_modules() if is_named_cross(module, path)
    }
    layers = {path: double.get_submodule(path) for path in find_layers(double)}
    if not layers:
        return Description(
            (),
            (
                f"{type(double).__name__} has no linear layers in items of nn.ModuleList or "
                "nn.Sequential, or in a GradientCheckpointingLayer, so it stays whole",
            ),
        )
    call, calls = layer_calls(double, layers, inputs)
    groups: dict[type, list[str]] = {}
    for path in calls:
        groups.setdefault(type(layers[path]), []).append(path)
    specs: list[Spec] = []
    notes: list[str] = []
    for paths in groups.values():
        tried = list(dict.fromkeys((paths[0], paths[len(paths) // 2], paths[-1])))
        replays = [Replay(layers[path], calls[path], seed) for path in tried]
        for found in _search(replays, known, specs, cross):
            if isinstance(found, str):
                notes.append(found)
            else:
                specs.append(found)
                LOGGER.info("described %s", ", ".join(found.classes))
    for random in (True, False):
        if not random:
            restore(double, plain)
            call, calls = layer_calls(double, layers, inputs)
        replays = [Replay(layers[path], calls[path], seed, must_change=random) for path in calls]
        in_model = Replay(double, call, seed, must_change=random, whole=True)
        specs = _certified(specs, replays, in_model, notes)
    return Description(tuple(specs), tuple(dict.fromkeys(notes)))


def _certified(
    specs: list[Spec], layers: list[Replay], model: Replay, notes: list[str]
) -> list[Spec]:
    """The specs that are exact in every layer and, all together, in the whole model.

    A module may also hand what is inside it to others, as one layer's values to the next.

    Args:
        specs: that were found.
        layers: all that were called.
        model: all of it.
        notes: gets why a class stays whole.
    """
    kept: list[Spec] = []
    for spec in specs:
        names = ", ".join(spec.classes)
        exact = _confirmed(spec, layers)
        if exact is None:
            notes.append(f"{names}: the description is not exact in every layer, so it stays whole")
            continue
        forms = (form for form in _forms(exact) if model.certify((*kept, form), ("rows",), 2))
        less = next(forms, None)
        if less is None:
            reason = model.refusal or "others use there what is inside"
            notes.append(
                f"{names}: the description is exact in its layers, but not in the whole model "
                f"({reason}), so it stays whole"
            )
        elif less not in kept:
            kept.append(less)
    return kept


def _forms(spec: Spec) -> Iterator[Spec]:
    """A spec, and the same with less freedom."""
    yield spec
    if isinstance(spec, AttentionSpec):
        for scores, heads, biased in itertools.product((False, True), repeat=3):
            yield dataclasses.replace(
                spec,
                fixed_scores=spec.fixed_scores or scores,
                fixed_heads=spec.fixed_heads or heads,
                value_bias=spec.value_bias or biased,
            )


def _confirmed(spec: Spec, replays: list[Replay]) -> Spec | None:
    """The spec, if it is exact in every layer that has such a module; None if it is not.

    Layers of one class may differ, and a class may be in layers of several.
    """
    having = [
        replay
        for replay in replays
        if any(class_name(type(module)) in spec.classes for module in replay.layer.modules())
    ]
    for each in (spec, dataclasses.replace(spec, joint=False)):
        if all(replay.certifies(each, (), times=2) for replay in having):
            return each
    return None


def _search(
    replays: list[Replay], known: DescribedAdapter, found: list[Spec], cross: set[type]
) -> Iterator[Spec | str]:
    """Forms of the modules of a layer that have none, or why one is left whole."""
    layer = replays[0].layer
    named = {name for spec in found for name in spec.classes}
    claimed: set[str] = set()  # layers that an inner module has
    seen: set[str] = set()
    inside_out = sorted(layer.named_modules(), key=lambda item: -item[0].count(".") - bool(item[0]))
    for path, module in inside_out:
        name = class_name(type(module))
        if known.knows(module) or name in named:
            claimed |= linears_below(layer, path)
            continue
        reason = why_whole(module)
        if reason is not None:
            yield f"{name}: {reason}"
            claimed |= linears_below(layer, path)
            continue
        if isinstance(module, _CONTAINERS) or name in seen:
            continue  # layers in a container are those of the module around it
        seen.add(name)
        attentions: list[Spec] = [*attention_candidates(layer, path, module, cross)]
        feeds: list[Spec] = [*feed_candidates(layer, path, module, claimed)]
        if not attentions and not feeds and len(_own_linears(layer, path) - claimed) > 1:
            yield f"{name}: its names suggest no description, so it stays whole"
        for candidates, kinds, what in (
            (attentions, ("scores", "values", "heads"), ""),
            (feeds, ("hidden",), "'s feed-forward part"),
        ):
            if not candidates:
                continue
            spec = _first_exact(candidates, replays, (*kinds, "rows"))
            if spec is not None:
                spec = _joint(spec, replays)
            yield spec or f"{name}{what}: no description is exact, so it stays whole"
            if spec is not None:
                named.add(name)
                claimed |= linears_below(layer, path)


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _own_linears(layer: nn.Module, path: str) -> set[str]:
    """Paths of the linear layers that a module, or a container in it, holds itself."""
    module = layer.get_submodule(path)
    inside = {f"{child}." for child, m in module.named_children() if not isinstance(m, _CONTAINERS)}
    prefix = f"{path}." if path else ""
    return {
        each
        for each in linears_below(layer, path)
        if not f"{each.removeprefix(prefix)}".startswith(tuple(inside))
    }


def _first_exact(
    candidates: list[Spec], replays: list[Replay], kinds: tuple[str, ...]
) -> Spec | None:
    """The first candidate that is exact in all replays; then those with less freedom."""
    for spec in candidates:
        if all(replay.certifies(spec, kinds) for replay in replays):
            return spec
    for scores, heads, fewer in (
        (True, False, ("values", "heads", "rows")),
        (False, True, ("scores", "values", "rows")),
        (True, True, ("values", "rows")),
    ):
        for spec, biased in itertools.product(candidates, (False, True)):
            if isinstance(spec, AttentionSpec):
                less = dataclasses.replace(
                    spec, fixed_scores=scores, fixed_heads=heads, value_bias=biased
                )
                if all(replay.certifies(less, fewer) for replay in replays):
                    return less
    return None


def _joint(spec: Spec, replays: list[Replay]) -> Spec:
    """The spec with one matmul for layers that read the same, where that is exact, too."""
    several = (
        spec.q != spec.k if isinstance(spec, AttentionSpec) else spec.gate not in (None, spec.up)
    )
    if several:
        joint = dataclasses.replace(spec, joint=True)
        if all(replay.certifies(joint, ("ends",)) for replay in replays):
            return joint
    return spec
