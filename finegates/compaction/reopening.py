"""Gives a compact model its dense sizes again, with zeros for what was removed.

Its outputs do not change, up to the rounding of sums with zeros. The dimensions that were removed
are recorded (:mod:`finegates.gates.removed_before`), so that gates treat them as closed for good.

1. A layer gets its rows and columns back (:mod:`finegates.compaction.filling`); low-rank factors
   do, too.
2. An attention with other heads, and a feed-forward module with one matmul for gate and up, are
   replaced by those that the configuration gives. They keep their own parameters.
3. Everything else is shared with the compact model.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from finegates.adapters import (
    Adapter,
    Attention,
    Block,
    HeadSizes,
    adapter_for,
    attentions,
)
from finegates.compaction.carried_code import check_carried
from finegates.compaction.filling import (
    Filled,
    dense_layout,
    fill_attention,
    fill_feed_forward,
    fill_heads,
    fill_layer,
    head_sizes,
)
from finegates.gates.detachment import detach
from finegates.gates.gate import FixedGate
from finegates.gates.gated_linear import GatedLinear, gated_layers, leaf_gates
from finegates.gates.gated_output import NAME
from finegates.gates.removed_before import lost_of, note_before, set_lost
from finegates.head_rows import layer_rows, letters_of
from finegates.modules.changed_settings import keep_settings
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.dense_shapes import dense_shape
from finegates.modules.linear import check_numbers, is_conv1d, linear_shape
from finegates.modules.narrowed import ConfigView
from finegates.modules.slices import note_sizes


def is_compact(model: nn.Module) -> bool:
    """Whether a plain model has compact layers, or stacked experts that became narrower."""
    return compact_module(model) is not None


def compact_module(model: nn.Module) -> str | None:
    """Path of the first module that became smaller; None of a plain model that is not compact."""
    return next(
        (
            path
            for path, module in model.named_modules()
            if isinstance(module, CompactLinear) or hasattr(module, "finegates_width")
        ),
        None,
    )


def has_constant_gates(model: nn.Module) -> bool:
    """Whether a plain model has gates, all of them constants that are zero or one."""
    gates = leaf_gates(model)
    return bool(gates) and all(
        isinstance(gate, FixedGate) and bool(((gate.values == 0) | (gate.values == 1)).all())
        for gate in gates
    )


@torch.no_grad()
def reopened(model: nn.Module) -> nn.Module:
    """The model in its dense sizes, without gates.

    Args:
        model: compact, plain, with or without plain LoRA; or with constant gates, which become
            part of the record. It does not change.

    Returns:
        a new model, which shares the tensors of all modules that kept their sizes.

    Raises:
        TypeError: a compact layer is quantised.
        ValueError: no layer of it is described, a changed module is not in a model of transformers,
            its configuration describes other tensors, it lost hidden dimensions, experts became
            narrower, or a layer that is replaced has a hook or another forward.
    """
    result = _reopened(model)
    check_carried(model, result)
    return result


def _reopened(model: nn.Module) -> nn.Module:
    adapter = adapter_for(model)
    for path, module in model.named_modules():
        if hasattr(module, "finegates_stream") or isinstance(module._modules.get(NAME), FixedGate):
            raise ValueError(
                f"{path or type(model).__name__} lost hidden dimensions (width=True), and cannot "
                "get gates again; gate the dense model"
            )
        if hasattr(module, "finegates_width"):
            raise ValueError(
                f"{path} holds stacked experts that were compacted, which cannot get gates again; "
                "gate the dense model"
            )
        if isinstance(module, CompactLinear):
            try:
                check_numbers(module.linear)
            except TypeError as error:
                raise TypeError(f"{path}: {error}") from None
    dense = _DenseModules(model)
    result = copy.deepcopy(model, _shared(model))
    if has_constant_gates(model):
        kept = {path: _open_sides(layer) for path, layer in gated_layers(model).items()}
        detach(result)
        if not note_before(result, kept, adapter):
            raise ValueError(
                f"the constant gates of {type(model).__name__} are not those of shared dimensions; "
                "call finegates.compact, whose result can be pruned again"
            )
        set_lost(result, lost_of(model))
        return result
    blocks = adapter.blocks(model)
    filled: Filled = {}
    for block in blocks:
        filled |= _fill_block(model, result, adapter, block, dense)
    device = next(model.parameters()).device
    result.to(device)
    _check_heads(blocks, adapter, result)
    masks = {path: _masks(result, path, *sides) for path, sides in filled.items()}
    note_before(result, masks, adapter)
    return result


def _shared(model: nn.Module) -> dict[int, Any]:
    """What a copy of the modules has in common with the model: tensors and configurations."""
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        for name in ("config", "generation_config"):
            if name in vars(module):
                shared[id(vars(module)[name])] = vars(module)[name]
    return shared


class _DenseModules:
    """The modules of dense models with the configurations of those in a model.

    Args:
        model: plain.
    """

    def __init__(self, model: nn.Module) -> None:
        self._models: dict[str, nn.Module] = {}
        self._parts: dict[str, PreTrainedModel] = {}
        for path, module in model.named_modules():
            inside = any(path.startswith(f"{outer}." if outer else "") for outer in self._parts)
            if isinstance(module, PreTrainedModel) and not inside:
                self._parts[path] = module

    def get(self, path: str) -> nn.Module:
        """The module at a path of the whole model."""
        for outer, part in self._parts.items():
            prefix = f"{outer}." if outer else ""
            if path.startswith(prefix):
                if outer not in self._models:
                    self._models[outer] = _made(part)
                return self._models[outer].get_submodule(path.removeprefix(prefix))
        raise ValueError(
            f"{path} is not in a model of transformers, so its dense sizes are unknown; gate the "
            "dense model"
        )


def _made(model: PreTrainedModel) -> nn.Module:
    """A model of the same class and configuration, on the CPU."""
    config: Any = copy.deepcopy(model.config)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        made: nn.Module = type(model)(config)
    return made


def _fill_block(
    model: nn.Module, result: nn.Module, adapter: Adapter, block: Block, dense: _DenseModules
) -> Filled:
    filled: Filled = {}
    for part in block.attentions:
        if hasattr(model.get_submodule(part.path), "finegates_heads"):
            sizes = head_sizes(model, part)
            _graft_attention(model, result, adapter, part, sizes, dense)
            layout = dense_layout(part)
            filled |= fill_attention(model, result, adapter, part, sizes, layout, adapters=True)
        else:
            filled |= _fill_compact(model, result, part.linears(), dense)
    for mixer in block.mixers:
        filled |= _fill_compact(model, result, mixer.linears(), dense)
    feed = block.feed_forward
    if feed is None:
        return filled
    joined = feed.path is not None and hasattr(model.get_submodule(feed.path), "finegates_joined")
    if joined:
        assert feed.path is not None
        new = dense.get(feed.path)
        old, expected = model.get_submodule(feed.path), adapter.join(copy.deepcopy(new))
        _keep_own(old, new, expected, feed.path, feed.linears(), set())
        result.set_submodule(feed.path, new)
    if joined or any(isinstance(model.get_submodule(p), CompactLinear) for p in feed.linears()):
        for path in feed.linears():
            shape = dense_shape(model, path)
            if shape is None:  # fused
                shape = dense_shape(model, f"{feed.path}.gate_up")
                assert shape is not None
                shape = shape[0], shape[1] // 2
            _place_dense(result, path, dense, shape)
        filled |= fill_feed_forward(model, result, feed, adapters=True)
    return filled


def _check_heads(blocks: tuple[Block, ...], adapter: Adapter, result: nn.Module) -> None:
    """Raises ValueError if attentions of the dense model have other heads than described."""
    found = attentions(adapter, result)
    for part in (part for block in blocks for part in block.attentions):
        dense = found[part.path]
        sizes = [(p.heads, p.kv_heads, p.head_dim, p.narrows) for p in (part, dense)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{part.path} had {part.heads} heads of width {part.head_dim} when it was "
                "compacted, which its configuration and its attributes do not give; gate the dense "
                "model"
            )


def _fill_compact(
    model: nn.Module, result: nn.Module, paths: tuple[str, ...], dense: _DenseModules
) -> Filled:
    """Fills the layers that are compact, each by itself."""
    filled: Filled = {}
    for path in paths:
        layer = model.get_submodule(path)
        if isinstance(layer, CompactLinear):
            _place_dense(result, path, dense, layer.dense_shape[::-1])
            filled[path] = fill_layer(result, path, layer, adapters=True)
    return filled


def _place_dense(
    result: nn.Module, path: str, dense: _DenseModules, shape: tuple[int, int]
) -> None:
    """Places the dense layer of a path, which may have another (in, out) than configured."""
    layer: Any = dense.get(path)
    if linear_shape(layer) != shape:
        sizes = shape if is_conv1d(layer) else shape[::-1]
        layer.weight = nn.Parameter(layer.weight.new_zeros(sizes))
        if layer.bias is not None:
            layer.bias = nn.Parameter(layer.bias.new_zeros(shape[1]))
        note_sizes(layer)
    result.set_submodule(path, layer)


def _graft_attention(
    model: nn.Module,
    result: nn.Module,
    adapter: Adapter,
    part: Attention,
    sizes: HeadSizes,
    dense: _DenseModules,
) -> None:
    """Replaces an attention with other heads by the dense one, and its layers."""
    old, new = model.get_submodule(part.path), dense.get(part.path)
    config: Any = getattr(old, "config", None)
    if config is not None:
        new.config = vars(config)["_config"] if isinstance(config, ConfigView) else config
    dense_part = adapter.with_sizes(new, part)
    copied = copy.deepcopy(new, {id(config): config})
    expected = adapter.narrow(copied, dense_part, dataclasses.replace(sizes, fused=False))
    per_head = adapter.per_head(new)
    norm = adapter.norm_of(new)
    fitted = set() if norm is None else {f"{name}.weight" for name in norm.names}
    _keep_own(old, new, expected, part.path, part.linears(), fitted | set(per_head))
    for name, axis in per_head.items():
        fill_heads(old, new, name, axis, sizes, dense_layout(part))
    result.set_submodule(part.path, new)
    rows = layer_rows(part, part.heads, part.kv_heads, part.head_dim)
    for path in part.linears():
        shape = dense_shape(model, path)
        if shape is None:  # fused
            count = sum(rows[letter].numel() for letter in letters_of(part, path))
            shape = dense_shape(model, part.joint_path)
            assert shape is not None
            shape = shape[0], count
        _place_dense(result, path, dense, shape)


def _keep_own(
    old: nn.Module,
    new: nn.Module,
    expected: nn.Module,
    path: str,
    layers: tuple[str, ...],
    others: set[str],
) -> None:
    """Gives a dense module the settings of a narrowed one, and the parameters that fit.

    Args:
        old: the narrowed module.
        new: the dense one, which is changed.
        expected: the narrowed form of the dense one.
        path: of both.
        layers: paths of layers, which are filled later.
        others: names of parameters that are filled later.

    Raises:
        ValueError: another parameter has a shape that the configuration does not give.
    """
    own = tuple(f"{each.removeprefix(f'{path}.')}." for each in layers)
    mine = {**dict(old.named_parameters()), **dict(old.named_buffers())}
    for name, tensor in (*new.named_parameters(), *new.named_buffers()):
        if name.startswith(own):
            continue
        owner, _, key = name.rpartition(".")
        holder, found = new.get_submodule(owner), mine.get(name)
        if found is not None and found.shape == tensor.shape:
            if key in holder._parameters:
                assert isinstance(found, nn.Parameter)
                holder._parameters[key] = found
            else:
                holder._buffers[key] = found
        elif found is not None and name in others:
            tensor.data = tensor.data.to(found.dtype)
        elif key in holder._parameters:
            raise ValueError(
                f"{path}.{name} is not what the configuration describes, so the dense sizes of the "
                "module are unknown; gate the dense model"
            )
    for name, child in old.named_children():
        if name in new._modules and next(child.parameters(), None) is None:
            new._modules[name] = child  # dropout and activations, as they are now
    keep_settings(old, new, expected, own)
    modes = {name: module.training for name, module in old.named_modules()}
    for name, module in new.named_modules():
        module.training = modes.get(name, old.training)


def _open_sides(layer: GatedLinear) -> tuple[Tensor, Tensor]:
    """Masks of the rows and columns whose constant gates are one."""
    rows, cols = (
        (
            torch.ones(size, dtype=torch.float32, device="cpu")
            if gate is None
            else gate.value().cpu()
        )
        != 0
        for gate, size in ((layer.rows, layer.out_features), (layer.cols, layer.in_features))
    )
    return rows, cols


def _masks(result: nn.Module, path: str, rows: Tensor, cols: Tensor) -> tuple[Tensor, Tensor]:
    columns, outputs = linear_shape(result.get_submodule(path))
    masks = []
    for size, index in ((outputs, rows), (columns, cols)):
        mask = torch.zeros(size, dtype=torch.bool, device="cpu")
        mask[index] = True
        masks.append(mask)
    return masks[0], masks[1]
