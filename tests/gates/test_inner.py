"""Gates on inner dimensions alone: every layer of the compact model is contiguous."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

import finegates as fg
from finegates.gates.block_parts import AttentionGates, FeedForwardGates
from finegates.gates.config import Dimensions
from finegates.gates.gated_linear import gated_layers
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.penalty import sparsity_penalty
from finegates.modules.compact_linear import CompactLinear
from support import described, tiny
from support.tolerance import model_bound

FAST = ("bert", "llama", "t5-gated")
ARCHITECTURES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(tiny.ARCHITECTURES)
]


def inner_model(model: nn.Module, **settings: object) -> nn.Module:
    settings = {"target": 0.2, "sequence_length": 7, **settings}
    config = fg.GateConfig(dimensions="inner", **settings)  # type: ignore[arg-type]
    return fg.attach(model, config)


def budget_of(model: nn.Module) -> MacsPenalty:
    penalty = sparsity_penalty(model)
    assert isinstance(penalty, MacsPenalty)
    return penalty


def scattered(model: nn.Module, seed: int = 0) -> nn.Module:
    """Closes some dimensions, but never a whole part."""
    tiny.scatter_gates(model, seed)
    for gate in budget_of(model).gates():
        gate.latent.data[0] = 1.0
    return model.eval()


def layers_that_move_data(small: nn.Module) -> list[str]:
    return [
        path
        for path, layer in small.named_modules()
        if isinstance(layer, CompactLinear)
        and not (layer.rows is None and layer.cols is None and layer.weight.is_contiguous())
    ]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compact_equals_gated_without_gathers_and_scatters(architecture: str, seed: int) -> None:
    model = scattered(inner_model(tiny.tiny_model(architecture)), seed)

    def some_numbers(m: nn.Module) -> torch.Tensor:
        numbers = tiny.output(m, tiny.tokens()).flatten()
        return numbers[:: max(1, numbers.numel() // 6)]

    bound = model_bound(model, some_numbers)
    small = fg.compact(model)
    assert ((some_numbers(small) - some_numbers(model)).abs() <= bound).all()
    assert float(bound.max()) < 1e-9
    assert layers_that_move_data(small) == []
    assert any(isinstance(layer, CompactLinear) for layer in small.modules())


@pytest.mark.parametrize("mean", [0.0, -0.7, -2.0])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_planned_macs_are_counted_macs(architecture: str, mean: float) -> None:
    model = inner_model(tiny.tiny_model(architecture)).eval()
    dense = fg.macs(model, 1, 7).total
    tiny.scatter_gates(model, seed=1, mean=mean)
    penalty = budget_of(model)
    assert penalty.dense * 7 == dense
    assert penalty.realised() == pytest.approx(
        fg.macs(fg.compact(model), 1, 7).total / dense, abs=1e-6
    )


@pytest.mark.parametrize("target", [0.2, 0.5])
@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
def test_the_budget_is_met(architecture: str, target: float) -> None:
    sizes = {"hidden_size": 48, "num_attention_heads": 8, "head_dim": 6}
    width = "n_inner" if architecture == "gpt2" else "intermediate_size"
    model = inner_model(tiny.tiny_model(architecture, **sizes, **{width: 96}), target=target)
    penalty = budget_of(model)
    for gate in penalty.gates():
        assert gate.importance is not None
        gate.importance.uniform_(0.5, 1.0, generator=torch.Generator().manual_seed(gate.size))
    penalty.close_least()
    dense = fg.macs(model, 1, 7).total
    assert fg.macs(fg.compact(model.eval()), 1, 7).total / dense == pytest.approx(
        1 - target, abs=0.01
    )


@pytest.mark.sampled(16)
@pytest.mark.parametrize("name", sorted(described.CONFIGURATIONS))
def test_layers_of_described_modules_are_contiguous(name: str) -> None:
    model = inner_model(described.described_model(name), target=0.01)
    small = fg.compact(scattered(model))
    assert layers_that_move_data(small) == []
    assert budget_of(model).realised() == pytest.approx(
        fg.macs(small, 1, 7).total / budget_of(model).dense / 7, abs=1e-6
    )


def test_only_heads_and_feed_forward_dimensions_have_gates() -> None:
    model = inner_model(tiny.tiny_model("bert"))
    attention, feed, *_ = model.finegates_structure  # type: ignore[misc]
    assert isinstance(attention, AttentionGates)
    assert isinstance(feed, FeedForwardGates)
    assert list(attention.gates()) == [attention.heads]
    assert list(feed.gates()) == [feed.hidden]
    assert {path.rpartition("layer.")[2] for path in gated_layers(model)} == {
        f"{layer}.{name}" for layer in (0, 1) for name in ("attention.output.dense", "output.dense")
    }


def test_biases_of_every_layer_of_the_blocks_train() -> None:
    trained = {
        dimensions: {
            name.replace(".base", "")
            for name, parameter in fg.attach(
                tiny.tiny_model("bert"), fg.GateConfig(target=0.2, dimensions=dimensions)
            ).named_parameters()
            if parameter.requires_grad and name.endswith("bias")
        }
        for dimensions in get_args(Dimensions)
    }
    assert trained["inner"] == trained["all"]
    assert len(trained["inner"]) > 2 * 6


def test_heads_that_must_stay_get_no_gate() -> None:
    model = inner_model(tiny.tiny_model("t5"))
    assert {gate.size for gate in budget_of(model).gates()} == {20}
    small = fg.compact(scattered(model))
    assert tiny.output(small, tiny.tokens()).isfinite().all()


def test_a_gated_and_a_compact_model_come_back_from_a_folder(tmp_path: Path) -> None:
    model = scattered(inner_model(tiny.tiny_model("llama", dtype=torch.float32)))
    expected = tiny.output(model, tiny.tokens())
    fg.save(model, tmp_path / "gated")
    again = fg.load(tmp_path / "gated")
    assert again.finegates_config.dimensions == "inner"  # type: ignore[union-attr]
    assert torch.equal(tiny.output(again.eval(), tiny.tokens()), expected)
    small = fg.compact(again)
    fg.save(small, tmp_path / "small")
    loaded = fg.load(tmp_path / "small")
    assert torch.equal(tiny.output(loaded, tiny.tokens()), tiny.output(small, tiny.tokens()))
    assert layers_that_move_data(loaded) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dimensions": "outer"}, "unknown dimensions 'outer'"),
        ({"dimensions": "inner", "preset": "reference"}, "cannot be chosen with preset"),
    ],
)
def test_what_does_not_go_with_inner_dimensions_is_refused(
    settings: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fg.GateConfig(**settings)  # type: ignore[arg-type]
