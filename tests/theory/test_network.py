"""Lanczos and PL ratios on functions with known spectra, and on a tiny encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finegates.suite.config.tier import NetworkLook
from support.tier import tiny_tier
from theory.finetuned import FREE, LORA, TRAINED, landscape_frame
from theory.network import local_landscape


@pytest.mark.parametrize("size", [3, 60])
def test_extreme_eigenvalues_and_ratio_of_a_quadratic_are_exact(size):
    values = torch.linspace(-1.0, 3.0, size, dtype=torch.float64)
    point = torch.full((size,), 0.5, dtype=torch.float64, requires_grad=True)

    def loss() -> torch.Tensor:
        return (values * point**2).sum() / 2 + 100

    found = local_landscape(loss, [point], seed=0, vectors=20)
    assert found.largest == pytest.approx(3, rel=1e-2)
    assert found.smallest == pytest.approx(-1, rel=1e-2)
    gradient = 0.5 * values.numpy()
    assert found.squared_gradient == pytest.approx(float(gradient @ gradient))
    assert found.ratio == pytest.approx(found.squared_gradient / (2 * found.loss))


def test_parameters_that_the_loss_does_not_see_are_flat():
    seen, unseen = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    found = local_landscape(lambda: (seen**2).sum(), [seen, unseen], seed=0)
    assert found.size == 4
    assert found.largest == pytest.approx(2)
    assert found.smallest == pytest.approx(0)


def test_a_point_without_a_second_derivative_is_refused():
    point = torch.zeros(30, dtype=torch.float64, requires_grad=True)
    with pytest.raises(ValueError, match="second derivative"):
        local_landscape(lambda: (1 + point.abs() ** 1.5).sum(), [point], seed=0)


def test_a_loss_that_is_not_finite_and_no_parameters_are_refused():
    point = torch.tensor([np.nan], requires_grad=True)
    with pytest.raises(ValueError, match="the loss is nan"):
        local_landscape(lambda: point.sum(), [point], seed=0)
    with pytest.raises(ValueError, match="no parameters to look at"):
        local_landscape(lambda: point.sum(), [], seed=0)


def test_a_tiny_encoder_is_looked_at_along_both_trainings(tmp_path):
    tier = tiny_tier(tmp_path)
    look = NetworkLook(steps=4, looks=2, rank=2, gate_learning_rate=0.2)
    frame = landscape_frame(tier, "cola", look, progress=False)
    assert set(frame["parameters"]) == {TRAINED, FREE, LORA}
    assert list(frame[frame["parameters"] == LORA]["step"]) == [0, 4]
    start = frame[(frame["step"] == 0) & (frame["parameters"] == TRAINED)].iloc[0]
    # The released code's gates start saturated: no trained parameter affects the task loss.
    assert start["saturated"] > 0.9
    assert start["ratio"] < 1e-3 * frame[frame["parameters"] == FREE]["ratio"].iloc[0]
    assert (frame["largest"] >= frame["smallest"]).all()


def test_more_rows_than_the_task_has_are_refused(tmp_path):
    look = NetworkLook(rows=10_000)
    with pytest.raises(ValueError, match=r"theory.network.rows is 10000, but task 'cola' has"):
        landscape_frame(tiny_tier(tmp_path), "cola", look, progress=False)
