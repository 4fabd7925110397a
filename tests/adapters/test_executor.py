"""The library's own attention is an option, which keeps fewer MACs than the narrowed stock one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from torch import nn

import finegates as fg
from finegates.adapters import register, registered, unwrap
from finegates.adapters.decoders import ATTENTIONS
from finegates.modules.attention import RotaryAttention
from support.described import (
    described_inputs,
    described_model,
    described_outputs,
    relative_difference,
)
from support.tiny import scatter_gates

OWN = tuple(spec for spec in ATTENTIONS if spec.executor is not None)
TYPES = ("llama", "mistral", "qwen2", "qwen3")


@pytest.fixture
def stock() -> Iterator[None]:
    """Described without the library's module, for one test."""
    register(*(replace(spec, executor=None) for spec in OWN))
    yield
    register(*OWN)
    registered.REGISTERED.clear()


def gated(name: str) -> nn.Module:
    model = fg.attach(described_model(name, "causal"), fg.GateConfig(sequence_length=9))
    scatter_gates(model, mean=0.7)
    return model.eval()


def small(name: str) -> nn.Module:
    return fg.compact(gated(name))


def attentions(model: nn.Module) -> list[nn.Module]:
    return [m for m in unwrap(model).modules() if hasattr(m, "finegates_heads")]


@pytest.mark.usefixtures("stock")
@pytest.mark.parametrize("name", TYPES)
def test_without_it_the_stock_module_itself_is_narrowed_exactly(name: str) -> None:
    model, inputs = gated(name), described_inputs(name, "causal", padding="left")
    found = fg.compact(model)
    assert attentions(found)
    assert not any(isinstance(module, RotaryAttention) for module in found.modules())
    assert relative_difference(
        described_outputs(model, inputs), described_outputs(found, inputs)
    ) < 1e-11  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_it_keeps_fewer_macs_where_heads_close_at_random(
    name: str, request: pytest.FixtureRequest
) -> None:
    """Groups of several sizes, and other rotary pairs in every head, need no padding."""
    own = small(name)
    assert any(isinstance(module, RotaryAttention) for module in own.modules())
    request.getfixturevalue("stock")
    assert fg.macs(own, 1, 9).total < fg.macs(small(name), 1, 9).total
