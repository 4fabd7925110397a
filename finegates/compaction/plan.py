"""What compaction keeps of each layer, and why; decided from gates alone, before any weight moves.

Each layer starts with its own closed rows and columns. Rules over the adapter's blocks then remove
more where that is exact. A new rule is a function that takes a part of a block and the drafts of
its layers; the transformation and the budget only read the finished :class:`Plan`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from finegates.adapters import Adapter, FeedForward, adapter_for, unwrap
from finegates.gates import Gate
from finegates.layers import GatedLinear, find_linear, gated_layers, linear_shape


@dataclass(frozen=True)
class LayerPlan:
    """What is kept of one linear layer.

    Attributes:
        path: module path in the unwrapped model; empty if the model is the layer itself.
        in_features: columns of the dense weight.
        out_features: rows of the dense weight.
        cols: int64, increasing: the kept columns. None keeps all.
        rows: int64, increasing: the kept rows. None keeps all.
        narrow_input: the layer before delivers the kept columns only, so nothing is gathered.
        narrow_output: the layer behind expects the kept rows only, so nothing is scattered.
        constants: float64 (in_features,), the constant that each removed column's input would have
            held, which moves into the bias; None where all are zero.
        reasons: what was removed by which rule, in words.
    """

    path: str
    in_features: int
    out_features: int
    cols: Tensor | None = None
    rows: Tensor | None = None
    narrow_input: bool = False
    narrow_output: bool = False
    constants: Tensor | None = None
    reasons: tuple[str, ...] = ()

    @property
    def kept_in(self) -> int:
        """Number of kept columns."""
        return self.in_features if self.cols is None else self.cols.numel()

    @property
    def kept_out(self) -> int:
        """Number of kept rows."""
        return self.out_features if self.rows is None else self.rows.numel()

    @property
    def kept_weights(self) -> int:
        """Weights kept; also the multiply-accumulates of one token."""
        return self.kept_out * self.kept_in

    @property
    def removed_weights(self) -> int:
        """Weights that are not kept."""
        return self.out_features * self.in_features - self.kept_weights

    def __str__(self) -> str:
        sizes = f"{self.out_features}x{self.in_features} -> {self.kept_out}x{self.kept_in}"
        return f"{self.path or '(the model)'}: {sizes}; {'; '.join(self.reasons) or 'all kept'}"


@dataclass(frozen=True)
class Plan:
    """The layers that compaction rewrites, by path; all others stay as they are."""

    layers: dict[str, LayerPlan]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([*map(str, self.layers.values()), *self.notes])


@torch.no_grad()
def plan_compaction(model: nn.Module, adapter: Adapter | None = None) -> Plan:
    """Decides what compaction keeps. Reads gate values only; the model is not changed.

    Args:
        model: with or without gates, plain or in a ``peft`` wrapper.
        adapter: describes the blocks; looked up by model type if None. A model of unknown type is
            planned layer by layer, which is exact but leaves the feed-forward pairs wide.

    Returns:
        a plan of the gated layers and of plain layers that a rule over a block narrows.

    Raises:
        ValueError: a gate lies on the meta device and has no values.
    """
    plain = unwrap(model)
    drafts = {name: _Draft.of(name, layer) for name, layer in gated_layers(plain).items()}
    notes: list[str] = []
    if drafts and adapter is None:
        try:
            adapter = adapter_for(plain)
        except ValueError as error:
            notes.append(f"layer by layer only: {error}")
    if drafts and adapter is not None:
        for block in adapter.blocks(plain):
            if block.feed_forward is not None:
                _pair_feed_forward(block.feed_forward, plain, drafts)
    return Plan({name: draft.finish() for name, draft in drafts.items()}, tuple(notes))


def gate_values(gate: Gate | None, dtype: torch.dtype) -> Tensor | None:
    """The evaluation gate (n,) as the layer applies it: rounded to the layer's dtype."""
    return None if gate is None else gate.value().detach().to(dtype)


def activation_at_zero(name: str) -> float | None:
    """phi(0), or None where it depends on parameters or the name is unknown."""
    from transformers.activations import ACT2FN

    if name not in ACT2FN:
        return None
    activation = ACT2FN[name]
    if next(activation.parameters(), None) is not None:
        return None
    return float(activation(torch.zeros(1, dtype=torch.float64)))


@dataclass
class _Draft:
    """A layer plan while rules still work on it; masks are True where kept."""

    path: str
    rows: Tensor
    cols: Tensor
    narrow_input: bool = False
    narrow_output: bool = False
    constants: Tensor | None = None
    reasons: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, path: str, layer: nn.Module) -> _Draft:
        base = layer.base if isinstance(layer, GatedLinear) else layer
        columns, outputs = linear_shape(base)
        draft = cls(
            path, torch.ones(outputs, dtype=torch.bool), torch.ones(columns, dtype=torch.bool)
        )
        if isinstance(layer, GatedLinear):
            dtype = layer.weight.dtype
            draft.rows = _open(layer.rows, dtype, draft.rows, path)
            draft.cols = _open(layer.cols, dtype, draft.cols, path)
            for side, mask in (("rows", draft.rows), ("columns", draft.cols)):
                if not bool(mask.all()):
                    draft.reasons.append(f"{int((~mask).sum())} closed {side}")
        return draft

    def finish(self) -> LayerPlan:
        return LayerPlan(
            path=self.path,
            in_features=self.cols.numel(),
            out_features=self.rows.numel(),
            cols=None if bool(self.cols.all()) else self.cols.nonzero().flatten(),
            rows=None if bool(self.rows.all()) else self.rows.nonzero().flatten(),
            narrow_input=self.narrow_input,
            narrow_output=self.narrow_output,
            constants=self.constants,
            reasons=tuple(self.reasons),
        )


def _open(gate: Gate | None, dtype: torch.dtype, default: Tensor, path: str) -> Tensor:
    values = gate_values(gate, dtype)
    if values is None:
        return default
    if values.is_meta:
        raise ValueError(f"a gate of layer {path!r} is on the meta device and has no values")
    return (values != 0).cpu()


def _pair_feed_forward(part: FeedForward, model: nn.Module, drafts: dict[str, _Draft]) -> None:
    """Removes the intermediate dimensions that cannot vary, from every layer that holds them.

    Without a gate projection, a closed row of ``up`` makes the value phi(0) whatever the input, so
    it moves into the bias of ``down``. With one, phi(gate) * up is zero if ``up`` is closed, or if
    ``gate`` is closed and phi(0) = 0. A closed column of ``down`` makes the value unread.
    """
    paths = part.linears()
    if not any(path in drafts for path in paths):
        return
    layers = {path: model.get_submodule(path) for path in paths}
    if not all(_is_linear(layer) for layer in layers.values()):
        return  # compact already
    own = {path: drafts.get(path) or _Draft.of(path, layer) for path, layer in layers.items()}
    up, down = own[part.up], own[part.down]
    gate = None if part.gate is None else own[part.gate]
    at_zero = activation_at_zero(part.activation)

    unread = ~down.cols
    constants = None
    if gate is not None:
        constant = ~up.rows
        if at_zero == 0.0:
            constant = constant | ~gate.rows
    elif at_zero is None:
        constant = torch.zeros_like(up.rows)
    else:
        constant = ~up.rows
        if at_zero != 0.0 and bool((constant & ~unread).any()):
            constants = (constant & ~unread).to(torch.float64) * at_zero
    removed = unread | constant
    if not bool(removed.any()):
        return
    for draft in (up, gate):
        if draft is not None:
            freed = int((draft.rows & removed).sum())
            if freed:
                draft.reasons.append(f"{freed} rows that nothing reads or that a pair makes zero")
            draft.rows, draft.narrow_output = ~removed, True
    emptied = int((down.cols & removed).sum())
    if emptied:
        moved = "" if constants is None else f", their {part.activation}(0) moved into the bias"
        down.reasons.append(f"{emptied} columns whose input is constant{moved}")
    down.cols, down.narrow_input, down.constants = ~removed, True, constants
    drafts.update({draft.path: draft for draft in _present(up, gate, down)})


def _present(*drafts: _Draft | None) -> Iterator[_Draft]:
    return (draft for draft in drafts if draft is not None)


def _is_linear(layer: nn.Module) -> bool:
    try:
        find_linear(layer.base if isinstance(layer, GatedLinear) else layer)
    except TypeError:
        return False
    return True
