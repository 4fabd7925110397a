"""One-shot criteria: their scores, and the number of dimensions that they close."""

from __future__ import annotations

import pytest
import torch

from finegates.modules.linear import dense_weight
from finegates.one_shot import (
    closing_gates,
    gated_names,
    keep_largest,
    magnitude_scores,
    random_scores,
    second_moment_scores,
    second_moments,
)
from support.tiny import tiny_model


@pytest.fixture
def model():
    return tiny_model("llama", "language", dtype=torch.float32)


def test_second_moments_are_means_over_all_tokens(model):
    ids = torch.arange(24).view(4, 6) % 40
    name = gated_names(model)[0]
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].detach())
    )
    with torch.no_grad():
        model(input_ids=ids)
    hook.remove()
    expected = torch.cat(seen).flatten(0, 1).square().mean(0)
    found = second_moments(model, [name], ids.split(2))
    assert torch.allclose(found[name], expected, rtol=1e-5)
    assert not model.get_submodule(name)._forward_pre_hooks


def test_no_batches_no_moments(model):
    with pytest.raises(ValueError, match="at least one batch"):
        second_moments(model, gated_names(model), [])


def test_scores_follow_their_equations(model):
    name = gated_names(model)[0]
    weight, _ = dense_weight(model.get_submodule(name))
    moments = {name: torch.rand(weight.shape[1])}
    rows, columns = second_moment_scores(model, [name], moments)[name]
    for i in (0, 3):
        assert rows[i] == pytest.approx(
            sum(
                abs(float(w)) * float(m) ** 0.5
                for w, m in zip(weight[i], moments[name], strict=True)
            )
        )
    assert columns[2] == pytest.approx(
        float(weight[:, 2].abs().sum() * moments[name][2].sqrt()), rel=1e-5
    )
    rows, columns = magnitude_scores(model, [name])[name]
    assert rows[1] == pytest.approx(float(weight[1].norm()))
    assert columns[1] == pytest.approx(float(weight[:, 1].norm()))


def test_an_input_that_is_never_active_scores_nothing(model):
    name = gated_names(model)[0]
    columns = dense_weight(model.get_submodule(name))[0].shape[1]
    moments = {name: torch.ones(columns)}
    moments[name][5] = 0.0
    scores = second_moment_scores(model, [name], moments)[name][1]
    assert scores.argmin() == 5
    assert scores[5] == 0


def test_random_scores_are_the_names_own(model):
    names = gated_names(model)[:2]
    first, again = random_scores(model, names, 1), random_scores(model, names[:1], 1)
    assert torch.equal(first[names[0]][0], again[names[0]][0])
    assert not torch.equal(first[names[0]][0], random_scores(model, names, 2)[names[0]][0])


def test_as_many_are_closed_as_asked_and_the_least(model):
    name = gated_names(model)[0]
    scores = magnitude_scores(model, [name])
    rows, columns = closing_gates(scores, {name: {"rows": 3, "cols": 0}})[name]
    assert int((rows == 0).sum()) == 3
    assert bool((columns == 1).all())
    assert scores[name][0][rows == 0].max() <= scores[name][0][rows == 1].min()


@pytest.mark.parametrize("closed", [-1, 5])
def test_more_than_there_are_cannot_be_closed(closed):
    with pytest.raises(ValueError, match=f"cannot close {closed} of 4"):
        keep_largest(torch.ones(4), closed)
