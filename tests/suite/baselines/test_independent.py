"""Independent rows and columns: their cost equals what compaction leaves."""

import copy

import pytest
import torch

from finegates.budget import macs
from finegates.compaction import compact
from finegates.gates.attachment import attach_fixed
from finegates.pruning.sensitivity import measure_sensitivity
from finegates.suite.baselines.independent import IndependentGroups
from support.tiny import tiny_model, tokens

LENGTH = 8


@pytest.fixture(scope="module")
def model():
    return tiny_model("bert", "classifier").eval()


def test_every_gated_layer_has_a_gate_for_each_row_and_each_column(model):
    groups = IndependentGroups(model, LENGTH)
    for path, (rows, cols) in groups.sides.items():
        assert (rows.size, cols.size) == tuple(model.get_submodule(path).weight.shape)
        assert set(groups.costs()[rows].tolist()) == {float(cols.size)}
        assert set(groups.costs()[cols].tolist()) == {float(rows.size)}
    assert len({*groups.gates.values()}) == 2 * len(groups.sides)
    assert groups.kept() == 1.0


def test_what_is_kept_is_what_compaction_keeps(model):
    groups = IndependentGroups(model, LENGTH)
    draw = torch.Generator().manual_seed(0)
    worth = {gate: torch.rand(gate.size, generator=draw) for gate in groups.gates.values()}
    said = groups.close(worth, 0.7)
    gated = attach_fixed(copy.deepcopy(model), groups.values())
    small = compact(gated)
    assert said == macs(small, 1, LENGTH).total / macs(model, 1, LENGTH).total
    assert said == pytest.approx(0.7, abs=0.05)


def test_importance_is_the_mean_of_absolute_derivatives_row_by_row(model):
    """By finite differences, for one row and one column of a layer."""
    groups = IndependentGroups(model, LENGTH)
    batch = {**tokens(3), "labels": torch.tensor([0, 1, 1])}
    found = measure_sensitivity(model, groups, [batch], lambda: None).absolute
    path = next(iter(groups.sides))
    step = 1e-3
    for side in (0, 1):
        gate, place = groups.sides[path][side], 1
        slopes = []
        for row in range(3):
            losses = []
            for sign in (1, -1):
                nudged = copy.deepcopy(model).double()
                weight = nudged.get_submodule(path).weight.data
                bias = nudged.get_submodule(path).bias.data
                index = (place,) if side == 0 else (slice(None), place)
                weight[index] *= 1 + sign * step
                if side == 0:
                    bias[place] *= 1 + sign * step
                one = {key: value[row : row + 1] for key, value in batch.items()}
                losses.append(nudged(**one).loss.item())
            slopes.append(abs(losses[0] - losses[1]) / (2 * step))
        assert found[gate][place].item() == pytest.approx(sum(slopes) / 3, rel=1e-2)
