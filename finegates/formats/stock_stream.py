"""The residual stream of a compact model in a stock model: its own width, or padded with zeros.

A configuration can hold the width of a stream whose norms are RMS norms: with k of d dimensions,
the weights and the epsilon of norms are rescaled (:mod:`finegates.modules.narrow_stream`). A layer
norm over fewer dimensions is another function, so such a stream is padded: behind a norm without
weight and bias, a dimension of zeros stays zero.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from finegates.adapters import Adapter, Block, Stream
from finegates.adapters.stock_sizes import is_valid
from finegates.compaction.filling import NotUniformError
from finegates.modules.narrow_stream import MARK, CountingLayerNorm

_SIZE, _EPSILON = "hidden_size", "rms_norm_eps"
_SCALE = "scalar_embed_scale"


def stream_of(model: nn.Module, adapter: Adapter) -> Stream | None:
    """The dense stream of a compact model that lost hidden dimensions; None if it did not."""
    if not hasattr(model, MARK):
        return None
    kind: Any = type(model)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        dense: nn.Module = kind(copy.deepcopy(model.config))
    # Layers of blocks may have become one, under another name.
    layers = {path for block in adapter.blocks(model) for path in block.linears()}
    for path, _ in list(dense.named_modules()):
        parent, _, name = path.rpartition(".")
        if path in layers or (path and name not in dense.get_submodule(parent)._modules):
            continue
        found: Any = model
        for each in filter(None, path.split(".")):
            found = getattr(found, each, None)
        if found is None:  # without a pooler, for example
            setattr(dense.get_submodule(parent), name, None)
    return adapter.stream(dense)


def with_width(model: nn.Module, config: Any, stream: Stream, head_dim: int) -> int:
    """Sets the narrowest width that a configuration can hold, at least that of the model.

    Args:
        model: compact.
        config: of the stock model, which has its other sizes; changes.
        stream: of the dense model.
        head_dim: width of a head, which must not follow from the hidden size.

    Returns:
        the width of the stock model.
    """
    kept, size = getattr(model, MARK)
    says = type(getattr(config, _SIZE, None)) is int and hasattr(config, _EPSILON)
    if stream.layer_norms or not says or kept == size:
        return size
    epsilon = getattr(config, _EPSILON)
    kind: Any = type(model)
    for width in range(kept, size):
        trial = copy.deepcopy(config)
        setattr(trial, _SIZE, width)
        setattr(trial, _EPSILON, epsilon * size / width)
        trial.head_dim = head_dim
        if not is_valid(trial):
            continue
        try:
            with torch.device("meta"), torch.random.fork_rng(devices=[]):
                built: nn.Module = kind(copy.deepcopy(trial))
        except Exception:  # classes raise what they like
            continue
        names = [*stream.tables, *(f"{path}.weight" for path, _ in stream.rms_norms)]
        if all(built.get_parameter(name).shape[-1] == width for name in names):
            for name in (_SIZE, _EPSILON, "head_dim"):
                setattr(config, name, getattr(trial, name))
            return width
    return size


@torch.no_grad()
def padded(model: nn.Module, stock: nn.Module, stream: Stream, width: int) -> nn.Module:
    """Pads the stream of a compact model with zeros to a width, in a copy.

    Layers of blocks keep their sizes; filling a stock layer pads them.

    Args:
        model: compact; it does not change, and the copy shares all tensors without such dimensions.
        stock: in which the copy's tensors will be put.
        stream: of the dense model.
        width: of the copy.

    Raises:
        NotUniformError: embeddings are multiplied by a number that depends on the width.
    """
    kept, _ = getattr(model, MARK)
    tensors = (*model.parameters(), *model.buffers())
    result = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    tied = _tied(result, stream)
    factor, norm = _embedding_factor(result, stock, stream)
    made: dict[tuple[int, int], tuple[nn.Parameter, nn.Parameter]] = {}

    def put(path: str, name: str, axis: int, scale: float = 1.0) -> None:
        owner = result.get_submodule(path)
        old: Any = owner._parameters.get(name)
        if old is None:
            return
        if (id(old), axis) not in made:
            made[id(old), axis] = old, nn.Parameter(_grown(old, axis, width, scale))
        owner._parameters[name] = made[id(old), axis][1]

    for name in stream.tables:
        put(name.removesuffix(".weight"), "weight", 1, factor)
    for path in stream.writes:
        put(path, "weight", 0)
        put(path, "bias", 0)
    for path in stream.reads:
        put(path, "weight", 1)
    for path in stream.layer_norms:
        counting: Any = result.get_submodule(path)
        assert isinstance(counting, CountingLayerNorm)
        put(path, "weight", 0)
        put(path, "bias", 0)
    for path, offset in stream.rms_norms:
        module: Any = result.get_submodule(path)
        scale = math.sqrt(kept / width) / (factor if path == norm and tied else 1.0)
        module.weight = nn.Parameter(_grown(module.weight, 0, width, scale, offset))
    return result


def scale_normed_rows(
    stock: nn.Module, adapter: Adapter, blocks: tuple[Block, ...], size: int, width: int
) -> None:
    """Keeps the outputs of query and key norms under the epsilon of the stream's norms.

    ``s x / sqrt(s^2 mean + eps s^2) = x / sqrt(mean + eps)`` with ``s^2 = d / k``.
    """
    for block in blocks:
        for part in block.attentions:
            if width == size or adapter.norm_of(stock.get_submodule(part.path)) is None:
                continue
            if part.is_fused:
                raise NotUniformError(
                    f"{part.path}: its norms share their epsilon with those of the residual stream"
                )
            for path in (part.q, part.k):
                layer: Any = stock.get_submodule(path)
                for tensor in (layer.weight, layer.bias):
                    if tensor is not None:
                        tensor.data = tensor.data * math.sqrt(size / width)


def _grown(tensor: Tensor, axis: int, width: int, scale: float, offset: float = 0.0) -> Tensor:
    """Appends zeros to a tensor along an axis and scales it; ``offset`` is part of its numbers."""
    shape = list(tensor.shape)
    shape[axis] = width
    grown = tensor.new_full(shape, -offset)
    wide = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
    scaled = ((wide + offset) * scale - offset).to(tensor.dtype) if scale != 1.0 else tensor
    grown.narrow(axis, 0, tensor.shape[axis]).copy_(scaled)
    return grown


def _tied(model: nn.Module, stream: Stream) -> bool:
    tables = {id(model.get_parameter(name)) for name in stream.tables}
    return any(id(model.get_submodule(path).weight) in tables for path in stream.reads)


def _embedding_factor(
    model: nn.Module, stock: nn.Module, stream: Stream
) -> tuple[float, str | None]:
    """Factor on embeddings that the stock model scales by another number than the copy.

    Also the norm whose output an output layer with the same weight reads.
    """
    for name in stream.tables:
        path = name.removesuffix(".weight")
        mine, theirs = (getattr(m.get_submodule(path), _SCALE, None) for m in (model, stock))
        if mine != theirs:
            around = path.rpartition(".")[0]
            norms = [p for p, _ in stream.rms_norms if p.rpartition(".")[0] == around]
            if len(norms) != 1 or len(stream.tables) != 1:
                raise NotUniformError(f"{path} is multiplied by a number that depends on its width")
            table: Any = model.get_submodule(path)
            before, after = table.embed_scale, stock.get_buffer(f"{path}.embed_scale")
            table.embed_scale = after.clone()
            setattr(table, _SCALE, theirs)
            return float(before) / float(after), norms[0]
    return 1.0, None
