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

import dataclasses
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from finegates.adapters import register, unwrap
from finegates.adapters.described import DescribedAdapter
from finegates.adapters.names import class_name
from finegates.adapters.printed import program
from finegates.compaction.certificate import float64_copy
from finegates.modules.kinds import CompactLayer, has_gates
from finegates.spec_search.layers import find_layers, layer_calls
from finegates.spec_search.left_whole import modules_left_whole
from finegates.spec_search.replay import OnlyAdapter, Replay, Spec, randomise, restore
from finegates.spec_search.search import Note, Search, less_free_forms
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
        code = [program(self.specs)] if self.specs else []
        notes = self.notes or (() if code else ("all that is searched has a description",))
        return "\n".join([*code, *(f"# {note}" for note in notes)])


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
        ValueError: the inputs are not keyword arguments, the model has gates or is compact, or
            none of its outputs is finite in float64.
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
    double = float64_copy(plain).eval()
    layers = {path: double.get_submodule(path) for path in find_layers(double)}
    if not layers:
        return Description(
            (),
            (
                f"{type(double).__name__} has no linear layers in items of nn.ModuleList or "
                "nn.Sequential, or in a GradientCheckpointingLayer, so it stays whole",
            ),
        )
    own = layer_calls(double, layers, inputs)
    if not any(bool(output.isfinite().any()) for output in own.outputs):
        what = "numbers that are not finite" if own.outputs else "no floating-point numbers"
        raise ValueError(
            f"{type(plain).__name__} itself gives {what} on these inputs in float64, so there is "
            "nothing to compare; give inputs with finite outputs, for example with another mask"
        )
    randomise(double, seed)
    calls = layer_calls(double, layers, inputs)
    known = known or DescribedAdapter()
    cross = {
        type(module) for path, module in double.named_modules() if is_named_cross(module, path)
    }
    search = Search(
        [Replay(layers[p], call, seed) for p, call in calls.layers.items()], known, cross
    )
    search.run()
    for spec in search.specs:
        LOGGER.info("described %s", ", ".join(spec.classes))
    specs = search.specs
    notes: list[Note] = []
    for random in (True, False):
        if not random:
            restore(double, plain)
            calls = own
        replays = [
            Replay(layers[path], call, seed, must_change=random)
            for path, call in calls.layers.items()
        ]
        in_model = Replay(double, calls.model, seed, must_change=random, whole=True)
        specs = _certified(specs, replays, in_model, notes)
    named = {note.name for note in notes}
    notes += [
        note
        for note in _left(layers, calls.layers, (known, OnlyAdapter(*specs)), search.notes)
        if note.name not in named
    ]
    uncertified = _uncertified(layers, calls.layers, OnlyAdapter(*specs))
    return Description(tuple(specs), tuple(dict.fromkeys([*map(str, notes), *uncertified])))


def _uncertified(
    layers: Mapping[str, nn.Module], called: Collection[str], found: DescribedAdapter
) -> Iterator[str]:
    """A note for each layer with modules of the found specs that the inputs do not reach."""
    for path, layer in layers.items():
        names = dict.fromkeys(class_name(type(m)) for m in layer.modules() if found.knows(m))
        if path not in called and names:
            yield (
                f"{path} is not called on these inputs, so what is said of {', '.join(names)} is "
                "not certified there: give inputs that reach it, too"
            )


def _left(
    layers: Mapping[str, nn.Module],
    called: Collection[str],
    adapters: tuple[DescribedAdapter, ...],
    found: list[Note],
) -> Iterator[Note]:
    """What the layers hold that stays whole, with the reasons that the search found, if any."""
    reasons: dict[str, list[Note]] = {}
    for note in found:
        reasons.setdefault(note.name, []).append(note)
    ran = {type(module) for path in called for module in layers[path].modules()}
    for path, layer in layers.items():
        for note in modules_left_whole(layer, adapters):
            if path in called:
                yield from reasons.get(note.name, [note])
            elif type(layer) not in ran:
                yield Note(class_name(type(layer)), ": it is not called on these inputs")


def _certified(
    specs: list[Spec], layers: list[Replay], model: Replay, notes: list[Note]
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
            notes.append(Note(names, ": the description is not exact in every layer"))
            continue
        forms = (
            form for form in less_free_forms(exact) if model.certify((*kept, form), ("rows",), 2)
        )
        less = next(forms, None)
        if less is None:
            text = ": the description is exact in its layers, but not in the whole model"
            notes.append(Note(names, f"{text} ({model.reason})"))
        elif less not in kept:
            kept.append(less)
    return kept


def _confirmed(spec: Spec, replays: list[Replay]) -> Spec | None:
    """The spec, if it is exact in every layer that has such a module; None if it is not.

    Layers of one class may differ, and a class may be in layers of several.
    """
    having = [replay for replay in replays if replay.has(spec.classes)]
    for each in (spec, dataclasses.replace(spec, joint=False)):
        if all(replay.certifies(each, (), times=2) for replay in having):
            return each
    return None
