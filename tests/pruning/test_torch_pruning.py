"""Torch-Pruning, an independent implementation, gives equal scores and equal models.

Compared for feed-forward dimensions by magnitude: their order, the model without some of them, and
the saved multiply-accumulates.
"""

import copy

import pytest
import torch

import finegates as fg
from finegates.pruning.groups import SharedGroups
from finegates.pruning.removed_weights import removed_squares
from support.tiny import output, tiny_model, tokens
from support.tolerance import model_bound

tp = pytest.importorskip("torch_pruning", reason="Torch-Pruning is not installed")

ARCHITECTURES = ("bert", "roberta", "deberta-v2")
LENGTH = 8


def layers_of(model):
    """For each feed-forward part: the layer that loses rows, the one that reads it, the gate."""
    groups = SharedGroups(model, "inner", LENGTH)
    return [
        (part.part.up, part.part.down, part.hidden)
        for part in groups.structure
        if hasattr(part, "hidden")
    ], groups


def group_of(model, path: str, places: list[int]):
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=tokens(2))
    layer = model.get_submodule(path)
    return graph.get_pruning_group(layer, tp.prune_linear_out_channels, idxs=places)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_score_a_feed_forward_dimension_by_the_squares_of_the_same_weights(architecture):
    model = tiny_model(architecture, dtype=torch.float32)
    parts, groups = layers_of(model)
    ours = removed_squares(model, groups)
    score = tp.importance.GroupMagnitudeImportance(
        p=2, group_reduction="sum", normalizer=None, bias=False
    )
    for up, _, gate in parts:
        theirs = score(group_of(copy.deepcopy(model), up, list(range(gate.size))))
        assert torch.allclose(theirs, ours[gate].float(), rtol=1e-5)
        assert theirs.argsort().tolist() == ours[gate].argsort().tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_both_leave_without_the_same_dimensions_computes_the_same(architecture):
    model = tiny_model(architecture, dtype=torch.float64)
    parts, groups = layers_of(model)
    removed = [1, 3, 4]
    pruned, closed = copy.deepcopy(model), {}
    for up, _, gate in parts:
        group_of(pruned, up, removed).prune()
        closed[gate] = torch.ones(gate.size).index_fill(0, torch.tensor(removed), 0.0)
    gated = fg.attach_fixed(copy.deepcopy(model), groups.values(closed))
    small = fg.compact(gated)
    inputs = tokens(2)
    with torch.no_grad():
        difference = (output(small, inputs) - output(pruned.eval(), inputs)).abs()
    # Each is within the bound of the gated model.
    assert bool((difference <= 2 * model_bound(gated, lambda m: output(m, inputs))).all())
    for up, down, gate in parts:
        left = gate.size - len(removed)
        assert pruned.get_submodule(up).out_features == left
        assert pruned.get_submodule(down).in_features == left
    linear = sum(m.weight.numel() for m in pruned.modules() if isinstance(m, torch.nn.Linear))
    whole = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    saved = fg.macs(model, 1, LENGTH).linear - fg.macs(small, 1, LENGTH).linear
    assert saved == (whole - linear) * LENGTH
