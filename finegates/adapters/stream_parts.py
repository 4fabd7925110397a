"""The residual stream of a model, found by the classes of its modules.

A dimension of the stream can be removed only if everything that reads, writes or normalises it is
known. So every tensor of the model that has the size of the stream must be described: as a layer of
a block, or by a :class:`finegates.specs.StreamSpec`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finegates.blocks import Attention, Block, FeedForward, Stream
from finegates.modules.kinds import CompactLayer, between_gates
from finegates.modules.likeness import is_alike
from finegates.modules.linear import linear_shape
from finegates.specs import StreamSpec

_REMEDY = "leave width out of GateConfig, or describe the type with a StreamSpec"


class UnknownStreamError(ValueError):
    """Something of a model that meets its residual stream is not described."""


def find_stream(
    model: nn.Module,
    blocks: Sequence[Block],
    spec_of: Callable[[nn.Module], StreamSpec | None],
    obstacle: Callable[[nn.Module, StreamSpec], str | None],
    further: Sequence[str],
) -> Stream:
    """Finds all layers that meet the residual stream; the model does not change.

    Args:
        model: plain; dense or gated.
        blocks: its layers.
        spec_of: gives the spec of a module.
        obstacle: why a module does not do what its spec says, or None.
        further: names of parameters of blocks that do not meet the stream.

    Raises:
        UnknownStreamError: a tensor of the size of the stream is not described, or layers have
            other sizes.
    """
    kind = type(model).__name__
    size = _size(model, blocks)
    found: dict[str, list[Any]] = {
        key: [] for key in ("tables", "layer", "rms", "reads", "writes", "apart")
    }
    for path, module in model.named_modules(remove_duplicate=False):
        spec = spec_of(module)
        if spec is None:
            continue
        reason = obstacle(module, spec) or _phi_at_zero(module, spec)
        if reason is not None:
            raise UnknownStreamError(f"{kind}: {path or 'the model'}: {reason}; {_REMEDY}")
        for key, place in _places(module, _without_copies(path), spec, size):
            found[key].append(place)
    if not found["tables"] and not found["writes"]:
        raise UnknownStreamError(
            f"no description says what writes to the residual stream of {kind}, so its hidden "
            f"dimensions cannot be closed; {_REMEDY}"
        )
    stream = Stream(
        size,
        tuple(dict.fromkeys((*found["tables"], *found["layer"], *found["writes"]))),
        tuple(f"{path}.weight" for path in dict.fromkeys(found["tables"])),
        tuple(dict.fromkeys(found["layer"])),
        tuple(dict.fromkeys(found["rms"])),
        tuple(dict.fromkeys(found["reads"])),
        tuple(dict.fromkeys(found["writes"])),
    )
    claimed = [*stream.gated, *(path for path, _ in stream.rms_norms), *stream.reads]
    claimed += [path for block in blocks for path in block.linears()]
    _check_complete(model, size, (*claimed, *found["apart"], *further))
    _check_around(model, claimed, spec_of)
    return stream


def reading_and_writing(blocks: Sequence[Block]) -> tuple[list[str], list[str]]:
    """Paths of the layers of blocks that read the stream, and of those that write to it."""
    reads: list[str] = []
    writes: list[str] = []
    for block in blocks:
        for part in (*block.attentions, block.feed_forward):
            if isinstance(part, Attention):
                reads += [part.q, part.k, part.v]
                writes.append(part.o)
            elif isinstance(part, FeedForward):
                reads += [path for path in part.linears() if path != part.down]
                writes.append(part.down)
    return list(dict.fromkeys(reads)), list(dict.fromkeys(writes))


def _size(model: nn.Module, blocks: Sequence[Block]) -> int:
    """The number of dimensions that all layers of blocks read and write."""
    kind = type(model).__name__
    for block in blocks:
        if block.mixers or block.experts is not None:
            part = block.experts or block.mixers[0]
            raise UnknownStreamError(
                f"{kind}: {part.path} reads the residual stream in layers without a description of "
                f"it; {_REMEDY}"
            )
    reads, writes = reading_and_writing(blocks)
    sizes = {path: _shape(model.get_submodule(path))[0] for path in reads}
    sizes |= {path: _shape(model.get_submodule(path))[1] for path in writes}
    size = sizes[reads[0]]
    other = next((path for path, each in sizes.items() if each != size), None)
    if other is not None:
        raise UnknownStreamError(
            f"{kind} has more than one residual stream: {reads[0]} reads {size} dimensions, and "
            f"{other} has {sizes[other]}; {_REMEDY}"
        )
    return size


def _shape(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer, gated, or in a wrapper of peft that trains a copy."""
    if isinstance(layer, CompactLayer):
        raise UnknownStreamError("the model is compact")
    layer = between_gates(layer)
    original = getattr(layer, "original_module", None)
    return linear_shape(original if isinstance(original, nn.Module) else layer)


def _places(module: nn.Module, path: str, spec: StreamSpec, size: int) -> Iterator[tuple[str, Any]]:
    """What a module holds, with its kind."""
    prefix = f"{path}." if path else ""
    for name in spec.tables:
        table = _child(module, name)
        if isinstance(table, nn.Embedding) and table.weight.shape[1] == size:
            yield "tables", prefix + name
    for name in spec.norms:
        norm = _child(module, name)
        if isinstance(norm, nn.LayerNorm) and tuple(norm.normalized_shape) == (size,):
            yield "layer", prefix + name
        elif norm is not None and not isinstance(norm, nn.LayerNorm):
            weight: Any = norm.weight
            if tuple(weight.shape) == (size,):
                yield "rms", (prefix + name, spec.offset)
    for key, names, side in (("reads", spec.reads, 0), ("writes", spec.writes, 1)):
        for name in names:
            layer = _child(module, name)
            if layer is not None and _shape(layer)[side] == size:
                yield key, prefix + name
    for name in spec.apart:
        yield "apart", prefix + name


def _without_copies(path: str) -> str:
    """A path without the wrapper of peft that holds the original and trained copies of a module."""
    return re.sub(r"\.(original_module|modules_to_save\.[^.]+)(?=\.|$)", "", path)


def _child(module: nn.Module, name: str) -> nn.Module | None:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, nn.Module) else None


def _phi_at_zero(module: nn.Module, spec: StreamSpec) -> str | None:
    """Why a closed dimension would not be zero behind an activation; None if it is."""
    phi: Any = getattr(module, spec.phi, None) if spec.phi else None
    if phi is None:
        return None
    with torch.no_grad():
        value = float(phi(torch.zeros(1, dtype=torch.float64, device="cpu")))
    return None if value == 0 else f"its activation is {value:g} at zero"


def _check_around(
    model: nn.Module,
    claimed: Sequence[str],
    spec_of: Callable[[nn.Module], StreamSpec | None],
) -> None:
    """Raises unless the code around everything that meets the stream is known."""
    around = {path.rpartition(".")[0] for path in claimed} | {""}
    for path in list(around):
        while path:
            path = path.rpartition(".")[0]
            around.add(path)
    for path in sorted(around):
        module = model.get_submodule(path)
        kind: Any = type(module)
        stock = next((each for each in kind.__mro__ if _is_known(each)), None)
        if stock is kind or spec_of(module) is not None:
            continue
        if stock is None or stock is nn.Module or not is_alike(kind, stock):
            raise UnknownStreamError(
                f"{path or 'the model'}: what {kind.__name__} does with the residual stream is not "
                f"known, so hidden dimensions cannot be closed; {_REMEDY}"
            )


def _is_known(kind: type) -> bool:
    package = kind.__module__.partition(".")[0]
    return package in ("transformers", "torch", "peft", "finegates")


def _check_complete(model: nn.Module, size: int, claimed: Sequence[str]) -> None:
    """Raises unless every tensor of the size of the stream is described."""
    inside = tuple(f"{path}." for path in claimed)
    tensors: list[tuple[str, Tensor, bool]] = [
        (name, tensor, size in tensor.shape)
        for name, tensor in model.named_parameters(remove_duplicate=False)
    ]
    tensors += [
        (name, tensor, tensor.is_floating_point() and tensor.shape[-1:] == (size,))
        for name, tensor in model.named_buffers(remove_duplicate=False)
    ]
    for name, tensor, meets in tensors:
        if meets and not _without_copies(name).startswith(inside):
            raise UnknownStreamError(
                f"{type(model).__name__}: {name} has the size {size} of the residual stream "
                f"(shape {tuple(tensor.shape)}), and no description says how it meets it, so "
                f"hidden dimensions cannot be closed; {_REMEDY}"
            )
