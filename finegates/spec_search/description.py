"""A description of the modules of an unknown architecture, found by search and certified by replay.

Names of layers and attributes suggest how a module might be described. Each suggestion is tried on
the model's own layers: gates close some of every kind of dimension, the layer is compacted by the
suggested description, and both are called with what the layer got in an ordinary forward pass, in
float64. What is equal for every closure is kept; what is not is described with less freedom, or
left whole. The search uses random parameters, because one that starts at zero would hide what
depends on it; what it finds must be exact with the model's own parameters, too.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from finegates.adapters import AttentionSpec, register, unwrap
from finegates.adapters.described import DescribedAdapter, class_name
from finegates.spec_search.candidates import attention_candidates, feed_candidates, linears_below
from finegates.spec_search.printed import as_code
from finegates.spec_search.replay import Replay, Spec, layer_calls, randomise, restore
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
        lines = ["register("]
        lines += [f"    {as_code(spec, 4)}," for spec in self.specs]
        lines += [")", *(f"# {note}" for note in self.notes)]
        return "\n".join(lines)


def describe(
    model: nn.Module,
    inputs: Mapping[str, Any],
    *,
    seed: int = 0,
    known: DescribedAdapter | None = None,
) -> Description:
    """Finds descriptions of unknown attention and feed-forward modules.

    The model is copied in float64. Descriptions hold for its configuration and for inputs like
    those given: give padded ones, longer than its attention windows.

    Args:
        model: a transformers model without gates; it is not changed.
        inputs: keyword arguments of its forward.
        seed: of the closures that are tried.
        known: the descriptions that there are; all if None.

    Returns:
        specs of the classes that were found; empty if there are none, or all are known.
    """
    double = copy.deepcopy(unwrap(model)).to(torch.float64).eval()
    randomise(double, seed)
    known = known or DescribedAdapter()
    cross = {
        type(module) for path, module in double.named_modules() if is_named_cross(module, path)
    }
    layers = {
        path: layer
        for path, layer in double.named_modules()
        if isinstance(layer, GradientCheckpointingLayer) or path.rpartition(".")[2].isdigit()
    }
    layers = {
        path: layer
        for path, layer in layers.items()
        if not any(inner != path and inner.startswith(f"{path}.") for inner in layers)
    }
    calls = layer_calls(double, layers, inputs)
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
    replays = [Replay(layers[path], calls[path], seed) for path in calls]
    candidates = [(spec, _confirmed(spec, replays)) for spec in specs]
    restore(double, unwrap(model))
    calls = layer_calls(double, layers, inputs)
    replays = [Replay(layers[path], calls[path], seed, must_change=False) for path in calls]
    confirmed: list[Spec] = []
    for spec, kept in candidates:
        kept = kept and _confirmed(kept, replays)
        if kept is None:
            notes.append(
                f"{', '.join(spec.classes)}: the description is not exact in every layer, so it "
                "stays whole"
            )
        elif kept not in confirmed:
            confirmed.append(kept)
    return Description(tuple(confirmed), tuple(dict.fromkeys(notes)))


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
    inside_out = sorted(layer.named_modules(), key=lambda item: -item[0].count(".") - bool(item[0]))
    for path, module in inside_out:
        name = class_name(type(module))
        if known.knows(module) or name in named:
            claimed |= linears_below(layer, path)
            continue
        attentions: list[Spec] = [*attention_candidates(layer, path, module, cross)]
        feeds: list[Spec] = [*feed_candidates(layer, path, module, claimed)]
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
                claimed |= linears_below(layer, path)


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
