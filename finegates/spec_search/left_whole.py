"""Which modules of a layer no description covers, and what is known of the reason."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from finegates.adapters.described import DescribedAdapter
from finegates.adapters.names import class_name
from finegates.modules.experts import is_experts
from finegates.modules.linear import is_linear
from finegates.modules.torch_layers import why_whole
from finegates.spec_search.candidates import (
    linears_below,
    path_in,
    why_no_attention,
)
from finegates.spec_search.replay import OneLayer
from finegates.spec_search.search import CONTAINERS, Note


def modules_left_whole(layer: nn.Module, adapters: tuple[DescribedAdapter, ...]) -> Iterator[Note]:
    """The modules of a layer with matrices that no part of an adapter has.

    A module that holds a single one counts as part of the next one around it that has several, if
    there is one; so does a container.

    Args:
        layer: of a model.
        adapters: each knows some descriptions.
    """
    covered, closed = _covered(layer, adapters)
    left = {
        path: _own_linears(layer, path) - covered
        for path, module in layer.named_modules()
        if not (is_linear(module) or (path and isinstance(module, CONTAINERS)))
    }
    alone = {next(iter(linears)) for linears in left.values() if len(linears) == 1}
    for path, module in layer.named_modules():
        if path not in left or is_experts(module):
            continue
        if any(path == each or path.startswith(f"{each}.") or not each for each in closed):
            continue
        reason = why_whole(module)
        if reason is not None:
            closed = (*closed, path)
            yield Note(class_name(type(module)), f": {reason}")
            continue
        own, matrices = left[path], _matrices(module)
        if not own and len(matrices) < 2:
            continue
        name = class_name(type(module))
        if len(own) > 1:
            yield Note(name, why_no_attention(layer, path, module) or _unnamed(path, own))
        elif matrices:
            yield Note(
                name,
                f": its matrices are parameters ({', '.join(matrices)}) instead of linear layers",
            )
        else:
            yield _note_of_one(layer, path, next(iter(own)), alone)


def _unnamed(path: str, linears: set[str]) -> str:
    names = ", ".join(sorted(each.removeprefix(f"{path}.") for each in linears))
    return f": its names suggest no description ({names})"


def _note_of_one(layer: nn.Module, path: str, linear: str, alone: set[str]) -> Note:
    """A note of the module with one linear layer left, or of the one around several such."""
    outer = path
    while outer:
        outer = outer.rpartition(".")[0]
        module = layer.get_submodule(outer)
        below = linears_below(layer, outer) & alone
        if not isinstance(module, CONTAINERS) and len(below) > 1:
            return Note(class_name(type(module)), _unnamed(outer, below))
    inner = linear.removeprefix(f"{path}.")
    name = class_name(type(layer.get_submodule(path)))
    return Note(name, f": {inner} alone is not described, and a description has several layers")


def _covered(
    layer: nn.Module, adapters: tuple[DescribedAdapter, ...]
) -> tuple[set[str], tuple[str, ...]]:
    """Paths of the layers that some part has, and of the modules that are described as a whole."""
    model = OneLayer(layer)
    linears: set[str] = set()
    modules: list[str] = []
    for adapter in adapters:
        for block in adapter.blocks(model):
            inner = [part.path for part in block.attentions]
            inner += [part.path for part in block.mixers]
            linears.update(path.removeprefix(OneLayer.PREFIX) for path in block.linears())
            modules += [path.removeprefix(OneLayer.PREFIX) for path in inner]
    for path in modules:
        linears |= linears_below(layer, path)
    return linears, tuple(modules)


def _own_linears(layer: nn.Module, path: str) -> set[str]:
    """Paths of the linear layers that a module, or a container in it, holds itself."""
    module = layer.get_submodule(path)
    inside = tuple(
        f"{path_in(path, name)}."
        for name, child in module.named_children()
        if not isinstance(child, CONTAINERS)
    )
    return {each for each in linears_below(layer, path) if not each.startswith(inside)}


def _matrices(module: nn.Module) -> list[str]:
    """Names of a module's own parameters with two dimensions or more, where layers are usual."""
    kind = type(module)
    if kind.__module__.startswith("torch.nn") and not isinstance(module, nn.MultiheadAttention):
        return []  # such as convolutions and embeddings
    return [name for name, p in module.named_parameters(recurse=False) if p.dim() > 1]
