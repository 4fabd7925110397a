"""Hooks and replaced forwards of a model that is gated again are kept, or refused by name."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import finegates as fg
from finegates.gates.gated_linear import leaf_gates
from support import tiny

CONFIG = fg.GateConfig(target=0.05, sequence_length=tiny.LENGTH)
OPTIONS = {"criterion": "magnitude", "sequence_length": tiny.LENGTH, "progress": False}
BLOCK = "bert.encoder.layer.1"
LAYERS = ("intermediate.dense", "intermediate.dense.linear", "attention.self.qkv", "output.dense")
ELSEWHERE = ("bert.pooler.dense", BLOCK, f"{BLOCK}.attention.self", f"{BLOCK}.output.LayerNorm")


def compact_model() -> nn.Module:
    model = fg.attach(tiny.tiny_model("bert"), CONFIG)
    tiny.scatter_gates(model, 1, 0.5)
    return fg.compact(model)


def attached(small: nn.Module) -> nn.Module:
    return fg.attach(small, CONFIG)


def pruned(small: nn.Module) -> nn.Module:
    return fg.prune(small, target=0.1, **OPTIONS)  # type: ignore[arg-type]


def output(model: nn.Module) -> Tensor:
    return tiny.output(model.eval(), tiny.tokens()).detach()


def doubled(module: nn.Module, args: Any, found: Any) -> Any:
    return (2 * found[0], *found[1:]) if isinstance(found, tuple) else 2 * found


@pytest.mark.parametrize("again", [attached, pruned])
@pytest.mark.parametrize("path", LAYERS)
def test_a_hook_on_a_layer_that_gets_other_sizes_is_refused(
    path: str, again: Callable[[nn.Module], nn.Module]
) -> None:
    small = compact_model()
    small.get_submodule(f"{BLOCK}.{path}").register_forward_hook(doubled)
    expected, modules = output(small), [*small.modules()]
    with pytest.raises(ValueError, match=rf"layer\.1\.{path.removesuffix('.linear')} has a hook"):
        again(small)
    assert [*small.modules()] == modules
    assert torch.equal(output(small), expected)


@pytest.mark.parametrize("path", ["intermediate.dense", "intermediate.dense.linear", "output"])
def test_a_forward_that_calls_the_former_layers_is_refused(path: str) -> None:
    small = compact_model()
    module = small.get_submodule(f"{BLOCK}.{path}")
    forward = module.forward
    module.forward = lambda *args, **kwargs: doubled(module, args, forward(*args, **kwargs))
    modules = [*small.modules()]
    for again in (attached, pruned):
        with pytest.raises(ValueError, match=r"forward of .* was replaced"):
            again(small)
    assert [*small.modules()] == modules


def test_a_method_of_a_block_stays() -> None:
    small = compact_model()
    block = small.get_submodule(BLOCK)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return doubled(self, args, type(self).forward(self, *args, **kwargs))

    block.forward = types.MethodType(forward, block)
    expected = output(small)
    assert (output(fg.detach(pruned(small))) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("path", ELSEWHERE)
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_other_hooks_run_in_the_compact_model(before: bool, path: str) -> None:
    model = compact_model()
    if before:
        model.get_submodule(path).register_forward_hook(doubled)
    attached(model)
    tiny.scatter_gates(model, 3, 0.7)
    plain = output(fg.compact(copy.deepcopy(model)))
    if not before:
        model.get_submodule(path).register_forward_hook(doubled)
    expected = output(model)
    assert before or (expected - plain).abs().max() > 1e-6
    assert (output(fg.compact(copy.deepcopy(model))) - expected).abs().max() < 1e-12
    assert (output(fg.detach(model, fold=True)) - expected).abs().max() < 1e-12


def test_a_hook_that_was_removed_does_not_come_back() -> None:
    model = compact_model()
    handle = model.get_submodule(BLOCK).register_forward_hook(doubled)
    attached(model)
    tiny.scatter_gates(model, 3, 0.7)
    handle.remove()
    assert (output(fg.compact(model)) - output(model)).abs().max() < 1e-12


@pytest.mark.parametrize("path", ["", ".linear", ".linear.base"])
def test_a_hook_on_a_smaller_layer_between_gates_is_refused(path: str) -> None:
    model = attached(compact_model())
    layer = f"{BLOCK}.intermediate.dense"
    model.get_submodule(f"{layer}{path}").register_forward_hook(doubled)
    expected = output(model)
    for function in (fg.compact, fg.detach):
        with pytest.raises(ValueError, match=r"layer\.1\.intermediate\.dense got a hook"):
            function(model)
    assert torch.equal(output(model), expected)


@pytest.mark.parametrize("path", [BLOCK, "bert.pooler.dense"])
def test_a_forward_that_is_replaced_between_gates_is_refused(path: str) -> None:
    model = attached(compact_model())
    module = model.get_submodule(path)
    forward = module.forward
    module.forward = lambda *args, **kwargs: doubled(module, args, forward(*args, **kwargs))
    with pytest.raises(ValueError, match=rf"{path}\.forward of .* changed"):
        fg.compact(model)


@pytest.mark.parametrize("inside", [False, True])
def test_a_hook_on_a_gated_layer_of_equal_sizes_stays(inside: bool) -> None:
    model = tiny.tiny_model("bert")
    path = f"{BLOCK}.output.dense"
    if inside:
        model.get_submodule(path).register_forward_hook(doubled)
    attached(model)
    for gate in leaf_gates(model):
        gate.latent.data.fill_(1.0)
    if not inside:
        model.get_submodule(path).register_forward_hook(doubled)
    expected = output(model)
    for inplace in (False, True):
        small = fg.compact(copy.deepcopy(model), inplace=inplace)
        assert (output(small) - expected).abs().max() < 1e-12


def test_a_hook_on_a_layer_that_loses_outputs_is_dropped_with_a_warning() -> None:
    model = tiny.tiny_model("bert")
    model.get_submodule(f"{BLOCK}.intermediate.dense").register_forward_hook(doubled)
    attached(model)
    tiny.scatter_gates(model, 1, 0.3)
    with pytest.warns(UserWarning, match=r"layer\.1\.intermediate\.dense has a hook"):
        fg.compact(model)


def test_a_forward_around_gated_layers_is_refused_where_the_model_is_copied() -> None:
    model = attached(tiny.tiny_model("bert"))
    tiny.scatter_gates(model, 1, 0.3)
    block = model.get_submodule(BLOCK)
    forward = block.forward
    block.forward = lambda *args, **kwargs: doubled(block, args, forward(*args, **kwargs))
    with pytest.raises(ValueError, match=r"forward of BertLayer was replaced"):
        fg.compact(model)
    expected = output(model)
    assert (output(fg.compact(model, inplace=True)) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("bound", [True, False])
@pytest.mark.parametrize("inside", ["", ".base"])
def test_a_forward_of_a_gated_layer_itself_is_refused(
    inside: str, bound: bool, inplace: bool
) -> None:
    model = fg.attach(tiny.tiny_model("bert"), CONFIG)
    tiny.scatter_gates(model, 1, 0.5)
    layer = model.get_submodule(f"{BLOCK}.output.dense{inside}")
    stock = type(layer).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return doubled(self, args, stock(self, *args, **kwargs))

    method = types.MethodType(forward, layer)
    layer.forward = method if bound else lambda *args, **kwargs: method(*args, **kwargs)
    expected = output(model)
    with pytest.raises(ValueError, match=r"output\.dense.*lost with the layer"):
        fg.compact(model, inplace=inplace)
    assert torch.equal(output(model), expected)
