"""What descriptions leave out of the layers that they are about.

Except in lists of experts, its linear layers count among the multiply-accumulates of a model, so
that a target means what it says also where, for example, only the feed-forward parts have a
description.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

from torch import nn

from finegates.blocks import Block, Undescribed
from finegates.modules.kinds import CompactLayer, between_gates
from finegates.modules.linear import looks_linear

logger = logging.getLogger(__name__)


def with_undescribed(
    model: nn.Module, blocks: Sequence[Block], apart: Iterable[str]
) -> tuple[Block, ...]:
    """The blocks with what no part of them covers, and those between them without any part.

    Args:
        model: plain; dense, gated or compact.
        blocks: its described layers.
        apart: paths of linear layers that do not multiply tokens, and do not count.
    """
    known = _Known(blocks, apart)
    rest: dict[str, Undescribed] = {}
    order: dict[str, None] = {}
    for path in dict.fromkeys(path for block in blocks for path in _list_of(model, block.path)):
        order[path] = None
        left_out = known.rest(path, model.get_submodule(path))
        if left_out is not None:
            rest[path] = left_out
    of_path: dict[str, list[Block]] = {}
    for block in blocks:
        of_path.setdefault(block.path, []).append(block)
    found: list[Block] = []
    for path in order:
        first, *others = of_path.get(path, [Block(path, (), None)])
        if path in rest:
            first = Block(
                first.path,
                first.attentions,
                first.feed_forward,
                first.experts,
                first.mixers,
                rest[path],
            )
        if path in rest or path in of_path:
            found += [first, *others]
    return tuple(found)


def undescribed_line(blocks: Iterable[Block]) -> str | None:
    """Says which classes in blocks have no description, and what that means, or None."""
    parts = [block.undescribed for block in blocks if block.undescribed is not None]
    classes = dict.fromkeys(name for part in parts for name in part.classes)
    if not parts:
        return None
    named = ", ".join(classes) or f"layers such as {parts[0].layers[0]}"
    return (
        f"{named}: without a description, so their linear layers keep their sizes and count among "
        "the MACs, and nothing else of them does (attention, convolutions, recurrences, experts); "
        "finegates.describe(model, inputs) looks for a description"
    )


def warn_of_undescribed(blocks: Iterable[Block]) -> None:
    """Logs :func:`undescribed_line`, if there is one."""
    line = undescribed_line(blocks)
    if line is not None:
        logger.warning("%s", line)


def _list_of(model: nn.Module, path: str) -> Iterator[str]:
    """The layer at a path, and those of the same list."""
    around, _, name = path.rpartition(".")
    owner = model.get_submodule(around) if around else model
    if not name.isdigit() or not isinstance(owner, nn.ModuleList | nn.Sequential):
        yield path
        return
    for other in owner._modules:  # all of them: a layer may be in a list twice
        if owner._modules[other] is not None:
            yield f"{around}.{other}" if around else other


class _Known:
    """The modules that descriptions cover.

    Args:
        blocks: the described layers.
        apart: see :func:`with_undescribed`.
    """

    def __init__(self, blocks: Sequence[Block], apart: Iterable[str]) -> None:
        self.covered = set(apart)
        self.stacks: dict[str, int] = {}
        self.inside: set[str] = set()
        for block in blocks:
            self.covered.update(block.linears())
            self.inside.update(part.path for part in block.attentions)
            self.inside.update(part.path for part in block.mixers)
            self.covered.update(part.joint_path for part in block.attentions if part.joint)
            if block.feed_forward is not None and block.feed_forward.path is not None:
                self.covered.add(f"{block.feed_forward.path}.gate_up")
            if block.experts is not None:
                self.stacks[block.experts.path] = block.experts.count
        self.outer = {
            each.rsplit(".", count)[0]
            for each in (*self.covered, *self.inside, *self.stacks)
            for count in range(1, each.count(".") + 1)
        }

    def rest(self, path: str, module: nn.Module) -> Undescribed | None:
        """What a layer holds apart from these, or None."""
        layers: list[str] = []
        classes: dict[str, None] = {}
        self._collect(path, module, layers, classes)
        return Undescribed(path, tuple(layers), tuple(classes)) if layers or classes else None

    def _collect(
        self,
        path: str,
        module: nn.Module,
        layers: list[str],
        classes: dict[str, None],
        named: bool = True,
    ) -> None:
        if path in self.covered or path in self.stacks or self._is_router(path, module):
            return
        if _is_leaf(module):
            layers.append(path)
            return
        named = named and path not in self.inside
        if path not in self.outer and path not in self.inside:
            found = list(_linears(path, module))
            layers += [each for each in found if not _is_of_experts(path, each)]
            if named and (found or _has_matrices(module)):
                classes[type(module).__name__] = None
            return
        for name, child in _children(module):
            if name != "original_module":  # peft's copy of what modules_to_save replace
                self._collect(f"{path}.{name}" if path else name, child, layers, classes, named)

    def _is_router(self, path: str, module: nn.Module) -> bool:
        """Whether a module next to stacked experts gives one number for each of them."""
        around = path.rpartition(".")[0]
        counts = {n for stack, n in self.stacks.items() if stack.rpartition(".")[0] == around}
        shapes = [p.shape for p in module.parameters() if p.dim() == 2]
        return len(shapes) == 1 and (shapes[0][0] in counts or shapes[0][1] in counts)


def _is_leaf(module: nn.Module) -> bool:
    """Whether a module is one linear layer: dense, with gates, adapters, or compact."""
    return isinstance(module, CompactLayer) or looks_linear(between_gates(module))


def _linears(path: str, module: nn.Module) -> Iterator[str]:
    if _is_leaf(module):
        yield path
        return
    for name, child in _children(module):
        yield from _linears(f"{path}.{name}", child)


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Those of all names, also of one module in two places."""
    yield from ((name, child) for name, child in module._modules.items() if child is not None)


def _is_of_experts(path: str, layer: str) -> bool:
    """Whether a token goes to some of such layers only."""
    return "experts" in layer.removeprefix(path).split(".")[:-1]


def _has_matrices(module: nn.Module) -> bool:
    """Whether a module multiplies by more than one number for each dimension."""
    return any(
        parameter.dim() > 1
        for each in module.modules()
        if not isinstance(each, nn.Embedding)
        for parameter in each.parameters(recurse=False)
    )
