"""The sizes in which a compact model is trained again: its own, up to what modules cannot say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import finegates as fg
from finegates.adapters import adapter_for, attentions
from finegates.compaction.given_sizes import given_plan
from finegates.gates.gated_linear import gated_layers
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.penalty import sparsity_penalty
from finegates.modules.compact_linear import CompactLinear
from support import tiny

# Their forwards divide scores by the root of the width that the module has.
SCALED_BY_WIDTH = ("deberta-v2", "mpnet")


def again(architecture: str) -> tuple[nn.Module, nn.Module]:
    """A compact model with other sizes in every layer, as it was and with gates."""
    torch.manual_seed(0)
    config = fg.GateConfig(target=0.01, sequence_length=tiny.LENGTH)
    model = fg.attach(tiny.tiny_model(architecture), config)
    tiny.scatter_gates(model)
    penalty = sparsity_penalty(model)
    assert isinstance(penalty, MacsPenalty)
    for gate in penalty.gates():
        gate.latent.data[0] = 1.0
    small = fg.compact(model.eval())
    heads = {
        p: m.finegates_heads for p, m in small.named_modules() if hasattr(m, "finegates_heads")
    }
    assert any(sizes.width < sizes.head_dim for sizes in heads.values())  # type: ignore[union-attr]
    return small, fg.attach(fg.compact(small), config)


def kept(layer: Any) -> tuple[int, int]:
    if isinstance(layer, CompactLinear):
        return layer.kept
    return layer.out_features, layer.in_features


@pytest.mark.parametrize("architecture", sorted(tiny.ARCHITECTURES))
def test_layers_have_the_sizes_of_the_compact_model(architecture: str) -> None:
    _, model = again(architecture)
    plan = given_plan(model)
    layers = gated_layers(model)
    assert len(plan.layers) >= len(layers) > 0
    for path, given in plan.layers.items():
        found, sizes = kept(model.get_submodule(path)), (given.kept_out, given.kept_in)
        scores = any(name in path for name in ("query", "key", ".q", ".k"))
        if architecture in SCALED_BY_WIDTH and scores:
            assert found[0] >= sizes[0]
            assert found[1] == sizes[1], path
        else:
            assert found == sizes, path


@pytest.mark.parametrize("architecture", sorted(tiny.ARCHITECTURES))
def test_attentions_have_the_heads_of_the_compact_model(architecture: str) -> None:
    small, model = again(architecture)
    fixed = architecture in (*SCALED_BY_WIDTH, "qwen3")  # Qwen3 has a weight for each dimension
    for path, part in attentions(adapter_for(small), small).items():
        sizes: Any = getattr(small.get_submodule(path), "finegates_heads", None)
        found: Any = getattr(model.get_submodule(path), "finegates_heads", None)
        width = part.head_dim if fixed or sizes is None else sizes.width
        heads = tuple(range(part.heads)) if sizes is None else sizes.heads
        if len(heads) == part.heads and width == part.head_dim:
            assert found is None
            continue
        assert (found.heads, found.width) == (heads, width)
        assert found.kv_heads == sizes.kv_heads
