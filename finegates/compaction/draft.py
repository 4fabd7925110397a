"""Mutable drafts of layer plans, which the rules of compaction narrow."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from finegates.adapters import has_module
from finegates.compaction.costs import Costs
from finegates.compaction.plans import LayerPlan
from finegates.gates.gate import Gate
from finegates.gates.gated_linear import GatedLinear
from finegates.modules.kinds import between_gates
from finegates.modules.linear import is_linear, linear_shape


@dataclass
class Draft:
    """A layer plan that rules can still narrow; masks are True where kept."""

    path: str
    rows: Tensor
    cols: Tensor
    input_width: int | None = None
    read: Tensor | None = None
    output_width: int | None = None
    write: Tensor | None = None
    scale: Tensor | None = None
    constants: Tensor | None = None
    reasons: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, path: str, layer: nn.Module) -> Draft:
        """A draft that keeps all rows and columns."""
        columns, outputs = linear_shape(layer.base if isinstance(layer, GatedLinear) else layer)
        return cls(
            path,
            torch.ones(outputs, dtype=torch.bool, device="cpu"),
            torch.ones(columns, dtype=torch.bool, device="cpu"),
        )

    @classmethod
    def of(cls, path: str, layer: nn.Module) -> Draft:
        """A draft that keeps what the layer's own gates leave open."""
        draft = cls.open(path, layer)
        if isinstance(layer, GatedLinear):
            dtype = layer.weight.dtype
            draft.rows = _open(layer.rows, dtype, draft.rows, path)
            draft.cols = _open(layer.cols, dtype, draft.cols, path)
            for side, mask in (("rows", draft.rows), ("columns", draft.cols)):
                if not bool(mask.all()):
                    draft.reasons.append(f"{int((~mask).sum())} closed {side}")
        return draft

    def remove_rows(self, kept: Tensor, why: str) -> None:
        """Narrows the rows to ``kept``, a mask over the rows kept so far."""
        freed = int((self.rows & ~kept).sum())
        if freed:
            self.reasons.append(f"{freed} rows {why}")
        self.rows = kept

    def remove_cols(self, kept: Tensor, why: str) -> None:
        """Narrows the columns, see :meth:`remove_rows`."""
        freed = int((self.cols & ~kept).sum())
        if freed:
            self.reasons.append(f"{freed} columns {why}")
        self.cols = kept

    @property
    def scatters(self) -> bool:
        """Whether its kept outputs are scattered between zeros."""
        return not bool(self.rows.all()) if self.output_width is None else self.write is not None

    def seconds(self, cost: Costs, *, joined: bool = False, scattered: bool = False) -> float:
        """Predicted time of one token.

        Args:
            cost: the cost model.
            joined: whether the layer is fused with another one, which gathers its inputs.
            scattered: whether the outputs are scattered with those of another layer.
        """
        gathers = self.read is not None
        gathers = gathers or (self.input_width is None and not bool(self.cols.all()))
        width = self.rows.numel() if self.output_width is None else self.output_width
        return cost.seconds(
            int(self.rows.sum()),
            int(self.cols.sum()),
            gathers=gathers and not joined,
            scatters_to=width if scattered or self.scatters else None,
            joined=joined,
        )

    def finish(self, seconds: float | None = None) -> LayerPlan:
        """Makes the final plan, with a predicted time if there is a cost model."""
        return LayerPlan(
            path=self.path,
            in_features=self.cols.numel(),
            out_features=self.rows.numel(),
            cols=None if bool(self.cols.all()) else self.cols.nonzero().flatten(),
            rows=None if bool(self.rows.all()) else self.rows.nonzero().flatten(),
            input_width=self.input_width,
            read=self.read,
            output_width=self.output_width,
            write=self.write,
            scale=self.scale,
            constants=self.constants,
            reasons=tuple(self.reasons),
            seconds=seconds,
        )


def _open(gate: Gate | None, dtype: torch.dtype, default: Tensor, path: str) -> Tensor:
    values = gate_values(gate, dtype)
    if values is None:
        return default
    if values.is_meta:
        raise ValueError(f"a gate of layer {path!r} is on the meta device and has no values")
    return (values != 0).cpu()


def gate_values(gate: Gate | None, dtype: torch.dtype) -> Tensor | None:
    """The evaluation gate (n,) in the layer's dtype, as the layer applies it."""
    return None if gate is None else gate.value().detach().to(dtype)


def all_linear(model: nn.Module, paths: tuple[str, ...]) -> bool:
    """Whether the model still has these layers, none compact or part of a product."""
    return all(
        has_module(model, path) and is_linear(between_gates(model.get_submodule(path)))
        for path in paths
    )
