"""Equal sizes of all layers: the best sizes within a budget, by importance."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainingArguments

import finegates as fg
from finegates.gates.block_parts import AttentionGates, FeedForwardGates
from finegates.gates.equal_sizes import EqualSizes
from finegates.gates.macs_penalty import MacsPenalty
from finegates.gates.penalty import sparsity_penalty
from finegates.gates.stochastic import StochasticGate
from support import described, tiny

LENGTH = 7
WIDE = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 8}
GROUPED = {**WIDE, "num_key_value_heads": 4, "head_dim": 6}


def wide(architecture: str, **further: object) -> nn.Module:
    sizes = GROUPED if architecture not in ("bert", "roberta", "gpt2") else WIDE
    if architecture == "gpt2":
        sizes = {"hidden_size": 48, "num_attention_heads": 8, "n_inner": 96}
    values: dict[str, Any] = {**sizes, **further}
    return tiny.tiny_model(architecture, **values)


def attached(model: nn.Module, **settings: object) -> nn.Module:
    values: dict[str, Any] = {"target": 0.4, "sequence_length": LENGTH, **settings}
    return fg.attach(model, fg.GateConfig(uniform=True, **values))


def budget_of(model: nn.Module) -> MacsPenalty:
    penalty = sparsity_penalty(model)
    assert isinstance(penalty, MacsPenalty)
    return penalty


def draw_importance(penalty: MacsPenalty, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for gate in penalty.gates():
        assert gate.importance is not None
        gate.importance.exponential_(generator=generator)


def kept_sizes(model: nn.Module) -> set[tuple[int, ...]]:
    """By layer: feed-forward dimensions, key-value heads, and query heads of each."""
    found = set()
    for part in model.finegates_structure:  # type: ignore[union-attr]
        if isinstance(part, FeedForwardGates):
            found.add((int((part.hidden.centre() > 0).sum()),))
        if isinstance(part, AttentionGates):
            heads = (part.heads.centre() > 0).view(part.part.kv_heads, -1).sum(1)  # type: ignore[union-attr]
            found.add(tuple(sorted(int(n) for n in heads if n)))
    return found


@pytest.mark.parametrize(
    ("architecture", "target"),
    [
        *itertools.product(["bert", "gpt2", "llama", "mistral", "qwen3"], [0.15, 0.4]),
        *itertools.product(["llama", "mistral", "qwen3"], [0.6]),
    ],
)
def test_every_layer_keeps_the_same_sizes_within_the_budget(
    architecture: str, target: float
) -> None:
    model = attached(wide(architecture), target=target)
    dense = fg.macs(model, 1, LENGTH).total
    penalty = budget_of(model)
    draw_importance(penalty)
    kept = penalty.close_least()
    sizes = kept_sizes(model)
    feeds = {size for size in sizes if len(size) == 1 and size[0] > 8} or sizes
    assert len(sizes) == (1 if architecture in ("bert", "gpt2") else 2), sizes
    assert all(size[0] % penalty.sizes.multiple == 0 or size[0] == 96 for size in feeds)  # type: ignore[union-attr]
    counted = fg.macs(fg.compact(model.eval()), 1, LENGTH).total / dense
    assert kept == pytest.approx(counted, abs=1e-6)
    assert abs(kept - (1 - target)) <= 0.01


def brute_force(model: nn.Module, multiple: int, goal: float) -> tuple[float, float]:
    """The least importance that equal sizes can close within a goal, with the kept fraction.

    MACs are counted by hand: those of a token in the linear layers, and for each attended token
    those of the two matmuls of every head.
    """
    parts = model.finegates_structure
    feeds = [p.hidden.importance for p in parts if isinstance(p, FeedForwardGates)]  # type: ignore[union-attr]
    heads = [p.heads.importance.view(4, 2) for p in parts if isinstance(p, AttentionGates)]  # type: ignore[union-attr]
    hidden, width = 48, 6

    def macs(intermediate: int, kv_heads: int, each: int) -> int:
        queries = kv_heads * each * width
        linear = 2 * hidden * queries + 2 * hidden * kv_heads * width + 3 * hidden * intermediate
        return linear + LENGTH * 2 * queries

    found = []
    for kv_heads, each in itertools.product(range(1, 5), range(1, 3)):
        if hidden % (kv_heads * each):
            continue  # refused by Llama's configuration
        for intermediate in range(multiple, 97, multiple):
            kept = macs(intermediate, kv_heads, each) / macs(96, 4, 2)
            if kept > goal + 0.01:
                continue
            lost = sum(float(f.sum() - f.topk(intermediate).values.sum()) for f in feeds)
            for values in heads:
                best = values.sort(descending=True).values[:, :each].sum(1).topk(kv_heads).values
                lost += float(values.sum() - best.sum())
            found.append((lost, kept))
    return min(found)


@pytest.mark.parametrize("seed", range(4))
def test_the_least_importance_is_closed_of_all_equal_sizes(seed: int) -> None:
    model = attached(wide("llama"), target=0.5, multiple_of=8)
    penalty = budget_of(model)
    draw_importance(penalty, seed)
    kept = penalty.close_least()
    closed = sum(
        float(gate.importance[gate.centre() <= 0].sum())  # type: ignore[index]
        for gate in penalty.gates()
    )
    lost, fraction = brute_force(model, 8, 0.5)
    assert closed == pytest.approx(lost, rel=1e-5)
    assert kept == pytest.approx(fraction, abs=1e-6)


def test_a_layer_keeps_its_most_important_dimensions() -> None:
    model = attached(wide("bert"), target=0.3)
    penalty = budget_of(model)
    draw_importance(penalty)
    penalty.close_least()
    for gate in penalty.gates():
        assert gate.importance is not None
        open_ = gate.centre() > 0
        assert gate.importance[open_].min() >= gate.importance[~open_].max()


def test_the_multiple_is_as_coarse_as_the_budget_allows() -> None:
    assert budget_of(attached(wide("bert"))).sizes.multiple == 2  # type: ignore[union-attr]
    assert budget_of(attached(wide("bert"), multiple_of=16)).sizes.multiple == 16  # type: ignore[union-attr]
    layers = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
    model = attached(tiny.tiny_model("bert", intermediate_size=3072, **layers))  # type: ignore[arg-type]
    penalty = budget_of(model)
    # Of 4 * 16 * 16 + 2 * 16 * 3072 weights and 7 * 2 * 16 products, a step of 32 is 1.03 %.
    assert penalty.sizes.multiple == 32  # type: ignore[union-attr]


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_training_ends_with_equal_sizes_at_the_budget(architecture: str, tmp_path: Any) -> None:
    model = attached(wide(architecture, dtype=torch.float32), target=0.4)
    dense = fg.macs(model, 1, LENGTH).total
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, tiny.VOCABULARY, (24, 6), generator=generator)
    rows = [{"input_ids": row, "labels": row[0] % 2} for row in ids]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=24,
        per_device_train_batch_size=4,
        learning_rate=5e-3,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
    )
    fg.GateTrainer(model=model, args=arguments, train_dataset=rows).train()
    small = fg.compact(model)
    assert len(kept_sizes(model)) == (1 if architecture == "bert" else 2)
    assert fg.macs(small, 1, LENGTH).total / dense == pytest.approx(0.6, abs=0.01)
    cost = fg.uniform_cost(small)
    assert cost.uniform == cost.compact


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_one_shot_pruning_keeps_equal_sizes_too(
    architecture: str, criterion: Any, steps: int
) -> None:
    model = wide(architecture)
    dense = fg.macs(model, 1, LENGTH).total
    fg.prune(
        model, target=0.4, uniform=True, criterion=criterion, steps=steps,
        sequence_length=LENGTH, progress=False,
    )  # fmt: skip
    small = fg.compact(model)
    assert fg.macs(small, 1, LENGTH).total / dense == pytest.approx(0.6, abs=0.01)
    cost = fg.uniform_cost(small)
    assert cost.uniform == cost.compact < cost.dense


def test_what_was_closed_stays_closed() -> None:
    model = attached(wide("llama"), target=0.5, multiple_of=8)
    sizes = budget_of(model).sizes
    assert isinstance(sizes, EqualSizes)

    def drawn(seed: int) -> dict[StochasticGate, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {g: torch.rand(g.size, generator=generator) for g in sizes.gates()}

    opened = sizes.choose(drawn(0), 0.8)
    for seed in range(1, 6):
        for gate, mask in sizes.choose(drawn(seed), 0.5, opened).items():
            assert bool((mask <= opened[gate]).all())


def test_heads_stay_where_the_configuration_cannot_say_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", logger="finegates"):
        model = attached(wide("bert"), target=0.2)
    assert "BertForSequenceClassification cannot say other numbers of heads" in caplog.text
    assert not any(isinstance(p, AttentionGates) for p in model.finegates_structure)  # type: ignore[union-attr]


def test_heads_stay_where_none_can_be_removed_as_a_whole(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", logger="finegates"):
        attached(tiny.tiny_model("t5"), target=0.2)
    assert "transformer.encoder.block.0.layer.0.SelfAttention can be removed" in caplog.text


def test_layers_of_different_sizes_are_refused_by_name() -> None:
    model = wide("llama")
    mlp = model.get_submodule("model.layers.1.mlp")
    for name in ("gate_proj", "up_proj"):
        setattr(mlp, name, nn.Linear(48, 90, bias=False).double())
    mlp.down_proj = nn.Linear(90, 48, bias=False).double()
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj has other sizes"):
        attached(model)


def test_stacked_experts_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="stacked experts"):
        attached(described.described_model("mixtral"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"multiple_of": 8}, "with uniform=True"),
        ({"uniform": True, "multiple_of": 0}, "positive multiple"),
        ({"uniform": True, "preset": "reference"}, "uniform cannot be chosen with preset"),
    ],
)
def test_what_does_not_go_with_equal_sizes_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fg.GateConfig(**settings)


def test_a_multiple_beyond_the_width_and_a_target_out_of_reach_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple_of=128 exceeds the 96"):
        attached(wide("bert"), multiple_of=128)
    with pytest.raises(ValueError, match=r"cannot be reached.*keep their sizes"):
        attached(wide("bert"), target=0.9)
