"""A description of the modules of an unknown architecture, found by search and certified by replay.

Names of layers and attributes suggest how a module might be described. Each suggestion is tried on
the model's own layers: gates close some of every kind of dimension, the layer is compacted by the
suggested description, and both are called with what the layer got in an ordinary forward pass, in
float64. What is equal for every closure is kept; what is not is described with less freedom, or
left whole.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import itertools
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from finegates.adapters import (
    AttentionSpec,
    FeedForwardSpec,
    NormSpec,
    RotarySpec,
    register,
    unwrap,
)
from finegates.adapters.described import DescribedAdapter, class_name
from finegates.compaction.activations import acts_on_numbers
from finegates.compaction.certificate import InFloat64, floats, relative_difference
from finegates.compaction.transform import compact
from finegates.gates.attachment import attach_gates
from finegates.gates.block_parts import AttentionGates, FeedForwardGates, Part, Structure
from finegates.gates.gate import FixedGate
from finegates.gates.shared import Sides, build_structure
from finegates.gates.stochastic import StochasticGate
from finegates.modules.linear import is_linear, linear_shape
from finegates.specs import is_named_cross

LOGGER = logging.getLogger(__name__)

_EQUAL = 1e-9
_QUERIES = ("q_proj", "query", "q", "q_lin", "query_proj", "to_q", "wq", "linear_q")
_KEYS = ("k_proj", "key", "k", "k_lin", "key_proj", "to_k", "wk", "linear_k")
_VALUES = ("v_proj", "value", "v", "v_lin", "value_proj", "to_v", "wv", "linear_v")
_FUSED = ("qkv_proj", "Wqkv", "c_attn", "query_key_value", "qkv", "in_proj")
_OUTPUTS = (
    *("o_proj", "out_proj", "o", "dense", "out_lin", "c_proj", "Wo", "proj", "to_out", "wo"),
    *("^output.dense", "^o_proj", "^out_proj", "^dense"),
)
_WIDTHS = ("head_dim", "attention_head_size", "head_size", "d_k", "dim_head", "key_value_proj_dim")
_TABLES = ("position_embeddings", "sinusoidal_pos", "rotary_pos_emb", "freqs_cis")
_ROTATED = ("rotary_ndims", "rotary_dim", "rotary_emb_dim")
_NORMS = (("q_norm", "k_norm"), ("query_norm", "key_norm"), ("q_layernorm", "k_layernorm"))
# Attributes that hold sizes, by what they are called.
_SIZES = {
    "heads": ("num_heads", "num_attention_heads", "n_heads", "n_head", "nheads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_kv_heads"),
    "each": ("num_key_value_groups", "n_rep"),
    "heads*width": ("all_head_size", "inner_dim", "split_size"),
}

Spec = AttentionSpec | FeedForwardSpec
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Description:
    """The specs that were found for a model.

    ``print(description)`` gives them as code to paste into a program, or into
    ``finegates/adapters/descriptions.py``.

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
        lines += [f"    {_as_code(spec, 4)}," for spec in self.specs]
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
    known = known or DescribedAdapter()
    cross = {
        type(module)
        for path, module in double.named_modules()
        if is_named_cross(module, path.rpartition(".")[2])
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
    calls = _calls(double, layers, inputs)
    groups: dict[type, list[str]] = {}
    for path in calls:
        groups.setdefault(type(layers[path]), []).append(path)
    specs: list[Spec] = []
    notes: list[str] = []
    for paths in groups.values():
        tried = list(dict.fromkeys((paths[0], paths[len(paths) // 2], paths[-1])))
        replays = [_Replay(layers[path], calls[path], seed) for path in tried]
        for found in _search(replays, known, specs, cross):
            if isinstance(found, str):
                notes.append(found)
            else:
                specs.append(found)
                LOGGER.info("described %s", ", ".join(found.classes))
    return Description(tuple(specs), tuple(dict.fromkeys(notes)))


class _Layer(nn.Module):
    """A transformer layer by itself, at a path as in a model."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layers[0](*args, **kwargs)


@dataclass
class _Replay:
    """A layer and one call of it."""

    layer: nn.Module
    call: Call
    seed: int
    dense: list[Tensor] = field(default_factory=list)

    def certifies(self, spec: Spec, kinds: tuple[str, ...]) -> bool:
        """Whether a spec describes its modules in this layer, for every kind of closure."""
        if not self.dense:
            self.dense = _outputs(_Layer(self.layer), self.call)
        for number, kind in enumerate((*kinds, *(["all"] * 6))):
            try:
                if not self._is_exact(spec, kind, self.seed + number):
                    return False
            except Exception:  # a wrong description can fail in any way
                return False
        return True

    def _is_exact(self, spec: Spec, kind: str, seed: int) -> bool:
        # Only what the spec describes is closed.
        adapter = OnlyAdapter(spec)
        model = _Layer(copy.deepcopy(self.layer))
        structure, sides = build_structure(
            model,
            lambda name, size: StochasticGate(size, "structured"),
            experts=False,
            adapter=adapter,
        )
        if not structure:
            return False
        if kind == "rows":
            sides = _closed_rows(model, structure, seed)
        attach_gates(model, sides)
        _close(structure, kind, seed)
        model.eval()
        gated = _outputs(model, self.call)
        small = compact(model, inplace=True, adapter=adapter)
        changed = relative_difference(self.dense, gated) > 1e-7
        narrowed = any(
            hasattr(m, "finegates_heads") or hasattr(m, "dense_shape") for m in small.modules()
        )
        return (
            changed
            and narrowed
            and relative_difference(gated, _outputs(small, self.call)) <= _EQUAL
        )


class OnlyAdapter(DescribedAdapter):
    """An adapter that knows the given specs and no others."""

    def _tables(self) -> dict[type, dict[str, Any]]:
        tables: dict[type, dict[str, Any]] = {t: {} for t in super()._tables()}
        for spec in self._further:
            tables[type(spec)] = dict.fromkeys(spec.classes, spec)
        return tables


def _closed_rows(model: nn.Module, structure: Structure, seed: int) -> Sides:
    """Gates that close some rows of every layer that widens or projects, each its own."""
    generator = torch.Generator().manual_seed(seed)
    sides: Sides = {}
    for part in structure:
        if not isinstance(part, AttentionGates | FeedForwardGates):
            continue
        end = part.part.o if isinstance(part, AttentionGates) else part.part.down
        for path in part.part.linears():
            if path != end:
                _, rows = linear_shape(model.get_submodule(path))
                kept = (
                    torch.rand(rows, generator=generator, dtype=torch.float32, device="cpu") > 0.3
                ).to(torch.float64)
                sides[path] = (FixedGate(kept), None)
    return sides


@torch.no_grad()
def _close(structure: Structure, kind: str, seed: int) -> None:
    """Closes a third of what every gate of a kind holds; ``all`` closes some of each."""
    generator = torch.Generator().manual_seed(seed)
    for part in structure:
        for gate in part.gates():
            gate.latent.fill_(2.0)
            name, rows, count = _kind(part, gate)
            if kind not in ("all", name):
                continue
            for row in range(rows):
                closed = torch.randperm(count, generator=generator, device="cpu")[
                    : max(count > 1, count // 3)
                ]
                gate.latent[row * count + closed] = -1.0


def _kind(part: Part, gate: StochasticGate) -> tuple[str, int, int]:
    """What a gate closes, in how many rows of how many dimensions of which each loses some."""
    if isinstance(part, AttentionGates):
        inner = part.part
        if gate is part.values:
            return "values", inner.kv_heads, inner.head_dim
        if gate is part.heads:
            each = inner.heads // inner.kv_heads
            return ("heads", inner.kv_heads, each) if inner.even else ("heads", 1, inner.heads)
        return ("scores" if gate is part.scores else "ends"), 1, gate.size
    return ("hidden" if gate is getattr(part, "hidden", None) else "ends"), 1, gate.size


def _outputs(model: nn.Module, call: Call) -> list[Tensor]:
    """What a layer gives to the next; attention weights are of as many heads as there are."""
    args, kwargs = copy.deepcopy(call)
    with torch.no_grad(), InFloat64():
        return list(itertools.islice(floats(model(*args, **kwargs)), 1))


def _calls(
    model: nn.Module, layers: dict[str, nn.Module], inputs: Mapping[str, Any]
) -> dict[str, Call]:
    """What each layer is called with."""
    calls: dict[str, Call] = {}
    handles = []
    for path, layer in layers.items():

        def before(module: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            calls.setdefault(path, (args, kwargs))

        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
    given = {
        name: value.to(torch.float64)
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for name, value in inputs.items()
    }
    if "use_cache" in inspect.signature(type(model).forward).parameters:
        given["use_cache"] = False
    try:
        with torch.no_grad(), InFloat64():
            model(**given)
    finally:
        for handle in handles:
            handle.remove()
    return {path: calls[path] for path in layers if path in calls}


def _search(
    replays: list[_Replay], known: DescribedAdapter, found: list[Spec], cross: set[type]
) -> Iterator[Spec | str]:
    """Forms of the modules of a layer that have none, or why one is left whole."""
    layer = replays[0].layer
    named = {name for spec in found for name in spec.classes}
    claimed: set[str] = set()  # layers that an inner module has
    inside_out = sorted(layer.named_modules(), key=lambda item: -item[0].count(".") - bool(item[0]))
    for path, module in inside_out:
        name = class_name(type(module))
        if known.knows(module) or name in named:
            claimed |= _linears_below(layer, path)
            continue
        attentions: list[Spec] = [*_attention_candidates(layer, path, module, cross)]
        feeds: list[Spec] = [*_feed_candidates(layer, path, module, claimed)]
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
                claimed |= _linears_below(layer, path)


def _first_exact(
    candidates: list[Spec], replays: list[_Replay], kinds: tuple[str, ...]
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


def _joint(spec: Spec, replays: list[_Replay]) -> Spec:
    """The spec with one matmul for layers that read the same, where that is exact, too."""
    several = (
        spec.q != spec.k if isinstance(spec, AttentionSpec) else spec.gate not in (None, spec.up)
    )
    if several:
        joint = dataclasses.replace(spec, joint=True)
        if all(replay.certifies(joint, ("ends",)) for replay in replays):
            return joint
    return spec


def _attention_candidates(
    layer: nn.Module, path: str, module: nn.Module, cross: set[type]
) -> Iterator[AttentionSpec]:
    """Forms that the names in a module suggest, the likeliest first."""
    width = next((name for name in _WIDTHS if isinstance(getattr(module, name, None), int)), None)
    outputs = [name for name in _OUTPUTS if _linear(layer, path, name) is not None]
    if width is None or not outputs:
        return
    projections: list[dict[str, Any]] = []
    split = [_first(layer, path, names) for names in (_QUERIES, _KEYS, _VALUES)]
    fused = _first(layer, path, _FUSED)
    if all(split):
        projections.append(dict(zip("qkv", split, strict=True)))
    elif fused is not None:
        for layout in ("qkv", "heads", "groups", "multi_query"):
            projections.append({**dict.fromkeys("qkv", fused), "layout": layout})
    for names, o in itertools.product(projections, outputs):
        shape = _linear(layer, path, o)
        assert shape is not None
        heads, rest = divmod(shape[0], getattr(module, width))
        if rest:
            continue
        sizes = {
            attribute: text
            for text, attributes in _SIZES.items()
            for attribute in attributes
            if isinstance(getattr(module, attribute, None), int)
        }
        plain = AttentionSpec((class_name(type(module)),), **names, o=o, width=width, sizes=sizes)
        if type(module) in cross:
            plain = dataclasses.replace(plain, cross=is_named_cross)
        for rotary, norm, scaled in itertools.product(
            _rotary_candidates(module), _norm_candidates(module, heads), (False, True)
        ):
            yield dataclasses.replace(plain, rotary=rotary, norm=norm, scaled_by_width=scaled)


def _rotary_candidates(module: nn.Module) -> list[RotarySpec | None]:
    parameters = inspect.signature(type(module).forward).parameters
    table = next((name for name in _TABLES if name in parameters), None)
    if table is None:
        return [None]
    rotated = next((n for n in _ROTATED if isinstance(getattr(module, n, None), int)), None)
    shapes: tuple[tuple[Any, Any], ...] = (
        *(("half", "twice"), ("next", "repeated"), ("next", "twice"), ("half", "once")),
        ("next", "sines"),
    )
    return [
        *(RotarySpec(pairs, table=table, order=order, rotated=rotated) for pairs, order in shapes),
        None,
    ]


def _norm_candidates(module: nn.Module, heads: int) -> list[NormSpec | None]:
    for names in _NORMS:
        norms = [getattr(module, name, None) for name in names]
        if all(isinstance(getattr(norm, "weight", None), Tensor) for norm in norms):
            over = ("head", "all") if heads > 1 else ("head",)
            return [
                NormSpec(names, kind, offset)  # type: ignore[arg-type]
                for kind, offset in itertools.product(over, (0.0, 1.0))
            ]
    return [None]


def _feed_candidates(
    layer: nn.Module, path: str, module: nn.Module, claimed: set[str]
) -> Iterator[FeedForwardSpec]:
    """Pairs of layers of a module of which one widens what the other narrows again."""
    inside = {
        name: linear_shape(child)
        for name, child in module.named_modules()
        if name and name.count(".") < 2 and is_linear(child)
        if (f"{path}.{name}" if path else name) not in claimed
    }
    calls = [
        name
        for name, value in _attributes(module)
        if callable(value) and not isinstance(value, type) and acts_on_numbers(value)
    ]
    name = class_name(type(module))
    for up, down in sorted(itertools.permutations(inside, 2), key=lambda pair: "gate" in pair[0]):
        (hidden, wide), (narrow, back) = inside[up], inside[down]
        if hidden != back or narrow <= hidden or any("attention" in n for n in (up, down)):
            continue
        gates = [
            g for g, shape in inside.items() if g not in (up, down) and shape == (hidden, wide)
        ]
        gates.sort(key=lambda g: "gate" not in g)
        for phi in calls:
            if wide == narrow:
                for gate in (*gates, None):
                    yield FeedForwardSpec((name,), up=up, down=down, gate=gate, phi=phi)
            elif wide == 2 * narrow:
                for layout in ("halves", "turns"):
                    yield FeedForwardSpec(
                        (name,),
                        up=up,
                        down=down,
                        gate=up,
                        phi=phi,
                        layout=layout,
                    )


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Attributes and submodules of a module, and of its children."""
    for prefix, owner in (("", module), *((f"{n}.", c) for n, c in module.named_children())):
        for name, value in (*owner.named_children(), *vars(owner).items()):
            if not name.startswith("_"):
                yield f"{prefix}{name}", value


def _linears_below(layer: nn.Module, path: str) -> set[str]:
    below = layer.get_submodule(path).named_modules()
    return {
        f"{path}.{name}" if path and name else path or name for name, m in below if is_linear(m)
    }


def _first(layer: nn.Module, path: str, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if _linear(layer, path, name) is not None), None)


def _linear(layer: nn.Module, path: str, name: str) -> tuple[int, int] | None:
    """(in, out) of a linear layer that a spec would name so, or None."""
    if name.startswith("^"):
        path, name = path.rpartition(".")[0], name[1:]
    try:
        child = layer.get_submodule(f"{path}.{name}" if path else name)
    except AttributeError:
        return None
    return linear_shape(child) if is_linear(child) else None


def _as_code(spec: Any, indent: int) -> str:
    """A spec as a call with what differs from the defaults, in lines of at most 88 characters."""
    values = []
    for each in dataclasses.fields(spec):
        value = getattr(spec, each.name)
        default = (
            each.default_factory()
            if each.default_factory is not dataclasses.MISSING
            else each.default
        )
        if value != default:
            values.append(f"{each.name}={_shown(value, indent + 4)}")
    name = type(spec).__name__
    line = f"{name}({', '.join(values)})"
    if indent + len(line) < 88:
        return line
    inside = "".join(f"{' ' * (indent + 4)}{value},\n" for value in values)
    return f"{name}(\n{inside}{' ' * indent})"


def _shown(value: Any, indent: int) -> str:
    if dataclasses.is_dataclass(value):
        return _as_code(value, indent)
    if callable(value):
        return str(value.__name__)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, tuple):
        inside = ", ".join(_shown(each, indent) for each in value)
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)}: {_shown(each, indent)}" for key, each in value.items())
        return f"{{{', '.join(pairs)}}}"
    return repr(value)
