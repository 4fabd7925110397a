"""Penalties against values computed by hand, and the kurtosis weights against scipy."""

import gc

import pytest
import torch
from scipy import stats
from torch import nn

from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.gated_linear import GatedLinear, gated_layers
from finegates.gates.kurtosis import KurtosisWeights, kurtosis
from finegates.gates.open_fractions import SparsityPenalty
from finegates.gates.penalty import sparsity_penalty
from finegates.gates.stochastic import StochasticGate
from support.tiny import tiny_model


def gated(rows: list[float], cols: list[float], preset: str = "paper_v1") -> GatedLinear:
    gates = []
    for latents in (rows, cols):
        gate = StochasticGate(len(latents), preset)
        gate.latent.data = torch.tensor(latents)
        gates.append(gate)
    return GatedLinear(nn.Linear(len(cols), len(rows)), *gates)


def test_target_penalty_is_the_mean_distance_over_sides_and_layers():
    model = nn.Sequential(gated([0.0, 0.0], [1.0]), gated([-1.0], [0.0, 1.0, -1.0]))
    p = {m: stats.norm.cdf(m / 0.5) for m in (-1.0, 0.0, 1.0)}
    layers = [
        (abs(p[0.0] - 0.7) + abs(p[1.0] - 0.7)) / 2,
        (abs(p[-1.0] - 0.7) + abs((p[0.0] + p[1.0] + p[-1.0]) / 3 - 0.7)) / 2,
    ]
    assert SparsityPenalty(model, 0.3)().item() == pytest.approx(sum(layers) / 2, abs=1e-6)


def test_hinge_penalty_stops_pushing_below_the_target():
    model = gated([-1.0, -1.0], [1.0, 1.0])
    penalty = SparsityPenalty(model, 0.4, "hinge")()
    expected = (0.6 + stats.norm.cdf(2.0)) / 2
    assert penalty.item() == pytest.approx(expected, abs=1e-6)
    penalty.backward()
    assert model.rows.latent.grad.abs().max() == 0
    assert model.cols.latent.grad.min() > 0


def test_mixed_presets_give_the_same_penalty_as_each_side_by_hand():
    layer = gated([0.2, 0.4], [0.1], "reference")
    other = gated([0.3], [0.5, 0.6], "paper_v1")
    model = nn.Sequential(layer, other)
    sides = [*(g for _, g in layer.gates()), *(g for _, g in other.gates())]
    expected = sum(abs(g.open_probability().mean() - 0.8) for g in sides) / 4
    assert SparsityPenalty(model, 0.2)().item() == pytest.approx(expected.item(), abs=1e-6)


def test_masked_kurtosis_is_scipys_on_the_kept_entries():
    torch.manual_seed(0)
    x, mask = torch.randn(6, 9, dtype=torch.float64), torch.rand(6, 9) > 0.3
    found = kurtosis(x, mask.double(), dim=1)
    expected = [
        stats.kurtosis(row[keep].numpy(), fisher=False) for row, keep in zip(x, mask, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected)


def test_kurtosis_weights_are_the_stated_softmax_over_open_rows():
    torch.manual_seed(0)
    layer = gated([1.0, -1.0, 1.0], [1.0, 1.0, -1.0, 1.0, 1.0])
    model = nn.Sequential(layer).train()
    weights = KurtosisWeights(model, tau=2.0)
    assert weights.weights("0", "rows") is None  # no input so far
    x = torch.randn(4, 7, 5)
    model(x)
    content = (layer.weight * x.reshape(-1, 5).mean(0)).detach()[:, [0, 1, 3, 4]]
    kurt = [stats.kurtosis(row.numpy(), fisher=False) for row in content[[0, 2]]]
    expected = torch.softmax(-torch.tensor(kurt).sqrt() / 2.0, 0)
    found = weights.weights("0", "rows")
    assert found.tolist() == pytest.approx([expected[0].item(), 0.0, expected[1].item()], abs=1e-5)
    cols = weights.weights("0", "cols")
    assert cols[2] == 0
    assert cols.sum().item() == pytest.approx(1.0)
    weights.remove()
    assert not layer._forward_pre_hooks


def test_a_penalty_that_is_dropped_leaves_no_hooks_on_the_model():
    config = GateConfig(preset="reference", target=0.2, kurtosis=True)
    model = attach(tiny_model("bert"), config)

    def hooks() -> int:
        return sum(len(module._forward_pre_hooks) for module in model.modules())

    before = hooks()
    penalty = sparsity_penalty(model)
    assert hooks() == before + len(gated_layers(model))
    del penalty
    gc.collect()
    assert hooks() == before


def test_kurtosis_weighting_changes_the_penalty_of_unequal_gates():
    torch.manual_seed(0)
    model = nn.Sequential(gated([1.0, 0.2, 0.6], [0.1, 0.9, 0.5, 0.4])).train()
    plain = SparsityPenalty(model, 0.2)
    weighted = SparsityPenalty(model, 0.2, kurtosis=KurtosisWeights(model, tau=0.1))
    model(torch.randn(3, 4))
    assert weighted().item() != pytest.approx(plain().item(), abs=1e-4)


def test_a_target_out_of_reach_is_refused_with_the_limit():
    with pytest.raises(ValueError, match="targets end at 0.841"):
        SparsityPenalty(gated([1.0], [1.0], "reference"), 0.9)
    SparsityPenalty(gated([1.0], [1.0], "paper_v1"), 0.9)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5])
def test_a_target_outside_the_unit_interval_is_refused(sparsity):
    with pytest.raises(ValueError, match=r"must be in \[0, 1\)"):
        SparsityPenalty(gated([1.0], [1.0]), sparsity)


def test_a_model_without_gates_and_an_unknown_penalty_are_refused():
    with pytest.raises(ValueError, match="no trainable gates"):
        SparsityPenalty(nn.Linear(2, 2), 0.1)
    with pytest.raises(ValueError, match="unknown penalty 'huber'"):
        SparsityPenalty(gated([1.0], [1.0]), 0.1, "huber")
