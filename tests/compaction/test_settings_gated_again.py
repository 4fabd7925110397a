"""Modules of a compact model that are not what the configuration gives stay so between gates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import finegates as fg
from finegates.adapters import adapter_for
from finegates.gates.gated_linear import leaf_gates
from finegates.gates.stochastic import StochasticGate
from support import tiny

OPTIONS = {"criterion": "random", "sequence_length": tiny.LENGTH, "progress": False}
# (architecture, attributes of an attention, of which the outputs depend on the first)
CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("bert", {"scaling": 0.9, "is_causal": True}),
    ("roberta", {"scaling": 0.9}),
    ("llama", {"scaling": 0.9, "attention_dropout": 0.3, "is_causal": False}),
    ("mistral", {"scaling": 0.9}),
    ("qwen2", {"scaling": 0.9}),
    ("qwen3", {"q_norm.variance_epsilon": 0.5, "scaling": 0.9}),
    ("gpt2", {"scaling": 0.9}),
    ("t5", {"dropout": 0.4}),
    ("deberta-v2", {"pos_dropout": nn.Dropout(0.3)}),
    ("mpnet", {"dropout": nn.Dropout(0.3)}),
]


def compact_model(model: nn.Module) -> nn.Module:
    return fg.compact(fg.prune(model, target=0.3, **OPTIONS))  # type: ignore[arg-type]


def attention(model: nn.Module, number: int = -1) -> Any:
    return model.get_submodule(adapter_for(model).blocks(model)[number].attentions[0].path)


def output(model: nn.Module) -> Tensor:
    return tiny.output(model, tiny.tokens()).detach()


def gated(small: nn.Module) -> nn.Module:
    """Open gates on all that a compact model has."""
    model = fg.attach(small, fg.GateConfig(target=0.0, sequence_length=tiny.LENGTH))
    for gate in leaf_gates(model):
        if isinstance(gate, StochasticGate):
            gate.latent.data[~gate.final()] = 1.0
    return model.eval()


def found(module: nn.Module, name: str) -> Any:
    owner, _, last = name.rpartition(".")
    return getattr(module.get_submodule(owner), last)


def assert_stays_with_gates_and_after(small: nn.Module, expected: Tensor) -> None:
    model = gated(small)
    assert (output(model) - expected).abs().max() < 1e-12
    assert (output(fg.compact(model)) - expected).abs().max() < 1e-12


@pytest.mark.parametrize(("architecture", "changes"), CHANGES)
def test_attributes_that_were_set_by_hand_stay(architecture: str, changes: dict[str, Any]) -> None:
    small = compact_model(tiny.tiny_model(architecture))
    before = output(small)
    for name, value in changes.items():
        owner, _, last = name.rpartition(".")
        setattr(attention(small).get_submodule(owner), last, value)
    expected = output(small.eval())
    first = next(iter(changes.values()))
    assert isinstance(first, nn.Module) or architecture == "t5" or not torch.equal(expected, before)
    model = gated(small)
    again = fg.compact(model)
    for each in (model, again):
        assert (output(each) - expected).abs().max() < 1e-12
        for name, value in changes.items():
            now = found(attention(each), name)
            if isinstance(value, nn.Module):
                assert now.p == value.p  # type: ignore[union-attr]
            elif name.endswith("epsilon"):
                # A norm over fewer dimensions has a larger epsilon.
                assert (now == value) or each is model
            else:
                assert now == value, name


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
def test_hooks_of_users_stay_and_those_of_narrow_modules_go(architecture: str) -> None:
    small = compact_model(tiny.tiny_model(architecture))
    attention(small).register_forward_pre_hook(
        lambda module, args, kwargs: (args, kwargs), with_kwargs=True
    )
    attention(small).register_forward_hook(lambda module, args, found: (2 * found[0], *found[1:]))
    expected = output(small)
    assert_stays_with_gates_and_after(small, expected)


def test_an_activation_of_one_layer_stays() -> None:
    small = compact_model(tiny.tiny_model("llama"))
    feed = small.get_submodule("model.layers.1.mlp")
    assert hasattr(feed, "gate_up")
    feed.act_fn = nn.Tanh()
    feed.mine = torch.tanh
    expected = output(small)
    model = gated(small)
    assert (output(model) - expected).abs().max() < 1e-12
    assert model.get_submodule("model.layers.1.mlp").mine is torch.tanh


def test_heads_of_one_layer_may_be_others_than_the_configuration_gives() -> None:
    model = tiny.tiny_model("bert")
    first, second = attention(model, 0), attention(model, 1)
    first.num_attention_heads, first.attention_head_size = 4, 3
    first.scaling = 3**-0.5
    # Two heads of three, as a pruning tool would leave them.
    for name in ("query", "key", "value"):
        layer = getattr(second, name)
        layer.weight = nn.Parameter(layer.weight[:8].detach().clone())
        layer.bias = nn.Parameter(layer.bias[:8].detach().clone())
        layer.out_features = 8
    layer = model.get_submodule("bert.encoder.layer.1.attention.output.dense")
    layer.weight = nn.Parameter(layer.weight[:, :8].detach().clone())
    layer.in_features = 8
    second.num_attention_heads, second.all_head_size = 2, 8
    small = compact_model(model)
    expected = output(small)
    assert_stays_with_gates_and_after(small, expected)


def test_a_replaced_forward_is_refused() -> None:
    small = compact_model(tiny.tiny_model("bert"))
    module = attention(small)
    forward = module.forward
    module.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    modules = [*small.modules()]
    with pytest.raises(ValueError, match="forward of BertSelfAttention was replaced"):
        gated(small)
    assert [*small.modules()] == modules
