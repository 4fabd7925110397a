"""One-shot pruning of hidden dimensions of a whole model."""

from __future__ import annotations

import pytest
import torch

import finegates as fg
from finegates.compaction import CostModel
from finegates.gates.gate import FixedGate
from finegates.gates.gated_linear import gated_layers
from finegates.gates.gated_output import width_gate
from finegates.pruning.groups import SharedGroups
from finegates.pruning.sensitivity import measure_sensitivity
from support.described import without_downcasts
from support.tiny import VOCABULARY, output, tiny_model, tokens

WIDE = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 4}
ROWS = 4


def batches(size: int = ROWS) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (ROWS, 6), generator=generator)
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}
    parts = {name: values.split(size) for name, values in whole.items()}
    return [{n: p[i] for n, p in parts.items()} for i in range(len(parts["labels"]))]


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "second_moment", "magnitude", "random"])
@pytest.mark.parametrize("dimensions", ["inner", "all"])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_the_budget_is_met_by_a_narrower_model(
    architecture: str, dimensions: str, criterion: str
) -> None:
    model = tiny_model(architecture, **WIDE)
    dense = fg.macs(model, 1, 128).total
    fg.prune(
        model,
        batches(),
        target=0.4,
        steps=2,
        criterion=criterion,
        dimensions=dimensions,
        width=True,
        progress=False,
    )
    gate = width_gate(model)
    assert gate is not None
    if criterion == "random":  # others may find all hidden dimensions worth their MACs
        assert 0 < int(gate.closed().sum()) < 48
    small = fg.compact(model)
    assert fg.macs(small, 1, 128).total / dense == pytest.approx(0.6, abs=0.01)
    with without_downcasts():
        gated, found = output(model, tokens()), output(small, tokens())
    assert (found - gated).abs().max() <= 1e-12 * gated.abs().max()


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_importance_is_the_derivative_over_all_uses_of_a_dimension(architecture: str) -> None:
    model = tiny_model(architecture)
    groups = SharedGroups(model, "inner", 7, width=True)
    width = groups.width
    assert width is not None
    with without_downcasts():
        found = measure_sensitivity(model, groups, batches(), lambda: None).absolute[width]
        singly = measure_sensitivity(model, groups, batches(1), lambda: None).absolute[width]
    torch.testing.assert_close(found, singly, rtol=1e-5, atol=1e-7)
    groups.attach(model)
    gates = {m for m in model.modules() if isinstance(m, FixedGate) and m.size == width.size}
    gate = width_gate(model)
    assert isinstance(gate, FixedGate)
    rows = [layer.rows for layer in gated_layers(model).values()]
    written = {gate} | {each for each in gates if any(each is other for other in rows)}
    step, expected = 1e-6, []
    for dimension in range(width.size):
        losses = []
        for sign in (1, -1):
            for each in written:
                each.values = torch.ones(width.size, dtype=torch.float64)
                each.values[dimension] += sign * step
            with torch.no_grad(), without_downcasts():
                losses.append(torch.stack([model(**row).loss for row in batches(1)]))
        expected.append(((losses[0] - losses[1]) / (2 * step)).abs().mean())
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_a_budget_on_predicted_time_closes_hidden_dimensions() -> None:
    model = tiny_model("llama", **WIDE)
    cost = CostModel()
    fg.prune(
        model, target=0.3, criterion="random", dimensions="inner", width=True, cost=cost,
        progress=False,
    )  # fmt: skip
    gate = width_gate(model)
    assert gate is not None
    assert bool(gate.closed().any())
    plan = fg.plan_compaction(model, cost=cost)
    assert plan.stream is not None
    assert plan.stream.kept.numel() == int((~gate.closed()).sum())


def test_a_refused_model_is_unchanged() -> None:
    model = tiny_model("deberta-v2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="DebertaV2"):
        fg.prune(model, criterion="magnitude", width=True, progress=False)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_compact_model_may_lose_hidden_dimensions_next_and_only_once() -> None:
    model = tiny_model("llama", **WIDE)
    options = {"criterion": "random", "dimensions": "inner", "progress": False}
    fg.prune(model, target=0.2, **options)
    again = fg.prune(fg.compact(model), target=0.4, width=True, **options)
    assert width_gate(again) is not None
    with without_downcasts():
        gated, found = output(again, tokens()), output(fg.compact(again), tokens())
    assert (found - gated).abs().max() <= 1e-12 * gated.abs().max()
    for narrow in (again, fg.compact(again)):
        with pytest.raises(ValueError, match="lost hidden dimensions"):
            fg.prune(narrow, target=0.6, **options)
