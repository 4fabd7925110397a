"""Certifies a spec on the layers of a model: what it gives for one call, gated and compact.

Gates close some of every kind of dimension, the layer is compacted by the spec, and both are called
with what the layer got in an ordinary forward pass of the model, in float64.
"""

from __future__ import annotations

import copy
import itertools
import logging
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from finegates.adapters import AttentionSpec, FeedForwardSpec
from finegates.adapters.described import DescribedAdapter
from finegates.adapters.names import class_name
from finegates.compaction.certificate import InFloat64, floats, relative_difference
from finegates.compaction.transform import compact
from finegates.gates.attachment import attach_gates
from finegates.gates.block_parts import AttentionGates, FeedForwardGates, Part, Structure
from finegates.gates.gate import FixedGate
from finegates.gates.shared import Sides, build_structure
from finegates.gates.stochastic import StochasticGate
from finegates.modules.linear import linear_shape
from finegates.spec_search.layers import Call

_EQUAL = 1e-9

Spec = AttentionSpec | FeedForwardSpec


class OneLayer(nn.Module):
    """A transformer layer by itself, at a path as in a model."""

    PREFIX = "layers.0."

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([layer])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer gives."""
        return self.layers[0](*args, **kwargs)


@dataclass
class Replay:
    """A layer and one call of it.

    Attributes:
        layer: in evaluation mode.
        call: its arguments.
        seed: of the closures.
        must_change: whether a closure without effect is a fault of the description; with the own
            parameters of a model, of which some may be zero, it is not.
        whole: whether the layer is a model, of which all outputs count.
        dense: what the layer gives, once it is known.
        reason: why what was described last is not exact.
    """

    layer: nn.Module
    call: Call
    seed: int
    must_change: bool = True
    whole: bool = False
    dense: list[Tensor] = field(default_factory=list)
    reason: str = ""

    def has(self, classes: Iterable[str]) -> bool:
        """Whether the layer holds a module of one of some classes."""
        return any(class_name(type(module)) in classes for module in self.layer.modules())

    def certifies(self, spec: Spec, kinds: tuple[str, ...], times: int = 6) -> bool:
        """Whether a spec describes its modules in this layer, for every kind of closure."""
        return self.certify((spec,), kinds, times)

    def certify(self, specs: tuple[Spec, ...], kinds: tuple[str, ...], times: int) -> bool:
        """Whether specs together describe their modules, for every kind of closure."""
        for number, kind in enumerate((*kinds, *(["all"] * times))):
            try:
                with _silent():
                    self.reason = self._fault(specs, kind, self.seed + number)
            except Exception as error:  # a wrong description can fail in any way
                self.reason = self._shown(error)
            if self.reason:
                return False
        return True

    def _shown(self, error: Exception) -> str:
        """The first line of an error, without what it says of the layer around a copy."""
        text = str(error).replace(OneLayer.PREFIX, "").replace(" in OneLayer", "").strip()
        first = text.partition("\n")[0]
        return first if isinstance(error, ValueError) else f"{type(error).__name__}: {first}"

    def _outputs(self, model: nn.Module) -> list[Tensor]:
        """What a layer gives to the next; attention weights are of as many heads as there are."""
        args, kwargs = copy.deepcopy(self.call)
        with torch.no_grad(), InFloat64():
            return list(itertools.islice(floats(model(*args, **kwargs)), None if self.whole else 1))

    def _fault(self, specs: tuple[Spec, ...], kind: str, seed: int) -> str:
        """Why specs are not exact for a closure; empty if they are."""
        self.dense = self.dense or self._outputs(OneLayer(self.layer))
        if not any(bool(each.isfinite().any()) for each in self.dense):
            return "what it gives is not finite"
        # Only what the specs describe is closed.
        adapter = OnlyAdapter(*specs)
        model = OneLayer(copy.deepcopy(self.layer))
        structure, sides = build_structure(
            model,
            lambda name, size: StochasticGate(size, "structured"),
            experts=False,
            adapter=adapter,
        )
        if not structure:
            return "its layers do not have the sizes of such a part"
        if kind == "rows":
            sides = _closed_rows(model, structure, seed)
        attach_gates(model, sides)
        _close(structure, kind, seed)
        model.eval()
        gated = self._outputs(model)
        small = compact(model, inplace=True, adapter=adapter)
        if self.must_change and not relative_difference(self.dense, gated) > 1e-7:
            return "what is closed there changes nothing"
        if not any(
            hasattr(m, "finegates_heads") or hasattr(m, "dense_shape") for m in small.modules()
        ):
            return "nothing of it gets smaller"
        difference = relative_difference(gated, self._outputs(small))
        if difference <= _EQUAL:
            return ""
        if self.whole:
            return "others use there what is inside"
        return f"the compact layer differs from the gated one by {difference:.0e} of its outputs"


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Gives every parameter random numbers of which none is near zero for all, in place.

    Those of one dimension keep their signs and get magnitudes in [0.5, 1.5]; those of several
    become normal with the variance 1/n, where n is the size of the last dimension. Buffers are
    facts of the architecture and stay, but for those that are zero, which become normal.

    Args:
        model: in float64, on any device; numbers of other dtypes stay.
        seed: of the numbers.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(tensor: Tensor) -> Tensor:
        numbers = torch.randn(tensor.shape, generator=generator, dtype=torch.float64, device="cpu")
        return numbers.to(tensor)

    for parameter in model.parameters():
        if not parameter.is_floating_point():
            continue
        if parameter.dim() > 1:
            parameter.copy_(drawn(parameter) / parameter.shape[-1] ** 0.5)
            continue
        sizes = torch.rand(parameter.shape, generator=generator, dtype=torch.float64, device="cpu")
        signs = torch.where(parameter == 0, drawn(parameter), parameter).sign()
        parameter.copy_((0.5 + sizes).to(parameter) * signs)
    for buffer in model.buffers():
        if buffer.is_floating_point() and not bool(buffer.any()):
            buffer.copy_(drawn(buffer))


@torch.no_grad()
def restore(model: nn.Module, source: nn.Module) -> None:
    """Gives a copy of a model its parameters and buffers back, in the dtypes of the copy."""
    for kind in ("named_parameters", "named_buffers"):
        own = dict(getattr(source, kind)())
        for name, tensor in getattr(model, kind)():
            if name in own and own[name].shape == tensor.shape:
                tensor.copy_(own[name])


class OnlyAdapter(DescribedAdapter):
    """An adapter that knows the given specs and no others."""

    def _tables(self) -> dict[type, dict[str, Any]]:
        tables: dict[type, dict[str, Any]] = {t: {} for t in super()._tables()}
        for spec in self._further:
            tables[type(spec)].update(dict.fromkeys(spec.classes, spec))
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


@contextmanager
def _silent() -> Iterator[None]:
    """Within the block, tries neither log nor warn: there are dozens of them for every layer."""
    thread = threading.get_ident()

    def others(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.WARNING

    loggers = [
        each
        for name, each in logging.root.manager.loggerDict.items()
        if isinstance(each, logging.Logger) and name.startswith("finegates.")
    ]
    for each in loggers:
        each.addFilter(others)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each in loggers:
            each.removeFilter(others)
