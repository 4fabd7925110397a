"""Gates on attention and feed-forward parts as a whole: a closed part is not computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import finegates as fg
from finegates.adapters import adapter_for
from finegates.gates.block_parts import AttentionGates, FeedForwardGates
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.penalty import sparsity_penalty
from support import described, tiny
from support.shrinking import CONFIG, train
from support.tolerance import model_bound

LENGTH = 7
FAST = ("bert", "llama", "t5-gated")
ARCHITECTURES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
    for name in sorted(tiny.ARCHITECTURES)
]
Gates = AttentionGates | FeedForwardGates


def gated(model: nn.Module, dimensions: str = "all", **settings: object) -> nn.Module:
    settings = {"target": 0.01, "sequence_length": LENGTH, **settings}
    config = fg.GateConfig(parts=True, dimensions=dimensions, **settings)  # type: ignore[arg-type]
    return fg.attach(model, config)


def budget_of(model: nn.Module) -> MacsPenalty:
    penalty = sparsity_penalty(model)
    assert isinstance(penalty, MacsPenalty)
    return penalty


def parts_of(model: nn.Module) -> list[Gates]:
    parts = budget_of(model).structure
    return [part for part in parts if isinstance(part, AttentionGates | FeedForwardGates)]


def with_closed(model: nn.Module, closed: list[int], seed: int | None = 0) -> nn.Module:
    """Scatters the other gates, and closes the parts of these numbers as a whole."""
    if seed is not None:
        tiny.scatter_gates(model, seed)
    for number, part in enumerate(parts_of(model)):
        assert part.whole is not None
        part.whole.latent.data.fill_(-1.0 if number in closed else 0.9)
    return model.eval()


def some_numbers(model: nn.Module) -> torch.Tensor:
    with described.without_downcasts():
        numbers = tiny.output(model, tiny.tokens()).flatten()
    return numbers[:: max(1, numbers.numel() // 6)]


def macs(model: nn.Module) -> int:
    return fg.macs(model, 1, LENGTH).total


@pytest.mark.parametrize("dimensions", ["all", "inner"])
@pytest.mark.parametrize("closed", [[], [0], [1], [0, 1], [2, 3], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compact_equals_gated_and_the_budget_counts_what_is_left(
    architecture: str, closed: list[int], dimensions: str
) -> None:
    model = gated(tiny.tiny_model(architecture), dimensions)
    dense = macs(model)
    with_closed(model, closed)
    small = fg.compact(model)
    bound = model_bound(model, some_numbers)
    assert ((some_numbers(small) - some_numbers(model)).abs() <= bound).all()
    assert float(bound.max()) < 1e-9
    assert budget_of(model).dense * LENGTH == dense
    assert budget_of(model).realised() == pytest.approx(macs(small) / dense, abs=1e-6)


@pytest.mark.parametrize("architecture", FAST)
def test_a_closed_part_adds_zero_and_is_not_multiplied(architecture: str) -> None:
    model = with_closed(gated(tiny.tiny_model(architecture)), [0, 1])
    small = fg.compact(model)
    for part in parts_of(model)[:2]:
        for path in part.part.linears():
            fused = f"{part.part.path}.qkv", f"{part.part.path}.gate_up"
            paths = [p for p in (path, *fused) if p in dict(small.named_modules())]
            assert all(small.get_submodule(p).weight.numel() == 0 for p in paths)
    outputs: list[torch.Tensor] = []
    for part in parts_of(model)[:2]:
        last = part.part.o if isinstance(part, AttentionGates) else part.part.down
        small.get_submodule(last).register_forward_hook(
            lambda module, args, output: outputs.append(output)
        )
    tiny.output(small, tiny.tokens())
    assert outputs
    assert not any(bool(output.any()) for output in outputs)


@pytest.mark.sampled(16)
@pytest.mark.parametrize("name", sorted(described.CONFIGURATIONS))
def test_parts_of_every_described_type_close(name: str) -> None:
    model = gated(described.described_model(name))
    dense = macs(model)
    with_closed(model, [0, 3])
    small = fg.compact(model)
    inputs = described.described_inputs(name)
    expected = described.described_outputs(model, inputs)
    found = described.described_outputs(small, inputs)
    assert described.relative_difference(found, expected) < 1e-9
    assert budget_of(model).realised() == pytest.approx(macs(small) / dense, abs=1e-6)


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_the_budget_closes_parts_whose_removal_costs_least(architecture: str) -> None:
    model = gated(tiny.tiny_model(architecture), target=0.4)
    penalty = budget_of(model)
    for gate in penalty.gates():
        assert gate.importance is not None
        gate.importance.fill_(1.0)
    idle = parts_of(model)[1]
    assert idle.whole is not None
    assert idle.whole.importance is not None
    idle.whole.importance.fill_(1e-6)
    dense = macs(model)
    penalty.close_least()
    assert not bool(idle.whole.value().any())
    small = fg.compact(model.eval())
    assert macs(small) / dense == pytest.approx(0.6, abs=0.03)
    assert penalty.realised() == pytest.approx(macs(small) / dense, abs=1e-6)


@pytest.mark.parametrize("shrink", [False, True])
def test_a_training_with_whole_parts_ends_at_the_target(shrink: bool, tmp_path: Path) -> None:
    length = CONFIG.sequence_length
    model = gated(tiny.tiny_model("bert"), target=0.5, sequence_length=length, shrink=shrink)
    dense = fg.macs(model, 1, length).total
    trained, _, _ = train(model, tmp_path)
    small = fg.compact(trained, verify=tiny.tokens(), verify_dtype=torch.float64)
    assert fg.macs(small, 1, length).total / dense == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("architecture", FAST)
def test_gated_and_compact_are_loaded_as_they_were_saved(architecture: str, tmp_path: Path) -> None:
    model = with_closed(gated(tiny.tiny_model(architecture)), [0, 3])
    fg.save(model, tmp_path / "gated")
    loaded = fg.load(tmp_path / "gated")
    assert torch.equal(some_numbers(loaded), some_numbers(model))
    small = fg.compact(loaded)
    fg.save(small, tmp_path / "compact")
    assert torch.equal(some_numbers(fg.load(tmp_path / "compact")), some_numbers(small))


def test_a_language_model_without_its_first_attention_generates_with_a_cache() -> None:
    model = with_closed(gated(tiny.tiny_model("llama", "language")), [0, 3])
    small = fg.compact(model)
    ids = tiny.tokens()["input_ids"]
    found = [
        small.generate(ids, max_new_tokens=5, do_sample=False, use_cache=cache)  # type: ignore[operator]
        for cache in (True, False)
    ]
    assert torch.equal(*found)


def test_a_compact_model_gets_gates_on_parts() -> None:
    small = fg.compact(with_closed(gated(tiny.tiny_model("llama")), [0]))
    sizes = macs(small)
    model = with_closed(gated(small), [0, 2], seed=None)
    assert budget_of(model).dense * LENGTH == sizes
    smaller = fg.compact(model)
    assert (some_numbers(smaller) - some_numbers(model)).abs().max() < 1e-12
    assert budget_of(model).realised() == pytest.approx(macs(smaller) / sizes, abs=1e-6)


@pytest.mark.parametrize("architecture", FAST)
@pytest.mark.parametrize("dimensions", ["all", "inner"])
def test_parts_are_pruned_at_once(architecture: str, dimensions: str) -> None:
    model = tiny.tiny_model(architecture)
    dense = macs(model)
    part = next(
        block.feed_forward for block in adapter_for(model).blocks(model) if block.feed_forward
    )
    for path in part.linears():  # nothing is less important
        for parameter in model.get_submodule(path).parameters():
            nn.init.zeros_(parameter)
    fg.prune(
        model, target=0.3, criterion="magnitude", dimensions=dimensions, parts=True,  # type: ignore[arg-type]
        sequence_length=LENGTH, progress=False,
    )  # fmt: skip
    small = fg.compact(model)
    assert (some_numbers(small) - some_numbers(model)).abs().max() < 1e-12
    assert macs(small) / dense == pytest.approx(0.7, abs=0.03)
    assert small.get_submodule(part.down).weight.numel() == 0


def test_what_parts_cannot_be_combined_with_is_refused() -> None:
    with pytest.raises(ValueError, match="parts cannot be combined with uniform"):
        fg.GateConfig(parts=True, uniform=True)
    with pytest.raises(ValueError, match="parts cannot be chosen with preset 'reference'"):
        fg.GateConfig(parts=True, preset="reference")
