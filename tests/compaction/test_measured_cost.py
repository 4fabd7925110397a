"""Calibration recovers planted costs, without a clock."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import finegates as fg
from finegates.compaction import measured_cost, measured_model
from finegates.compaction.measured_model import fitted_to_model, nonnegative, scaled
from support import tiny
from support.times import seconds_of_modules

LENGTH, BATCH = 7, 3
PLANTED = fg.CostModel(
    product=1.0, gather=3.0, scatter=2.0, head_multiple=2, output=0.7, input=0.4, layer=17.0,
    gather_call=29.0, scatter_call=23.0,
    attention=1.3, score=5.0, activation=11.0, length=LENGTH,
)  # fmt: skip


def test_prices_of_several_kinds_of_work_are_found() -> None:
    generator = np.random.default_rng(0)
    work = generator.integers(1, 50, (9, 3)).astype(float)
    prices = np.array([2.0, 0.25, 7.0])
    assert nonnegative(work, work @ prices) == pytest.approx(prices)


def test_a_price_that_would_be_negative_is_zero_and_the_others_fit_as_well_as_they_can() -> None:
    work = np.array([[1.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
    times = np.array([0.5, 1.5, 3.5])  # work[:, 0] - 0.5
    found = nonnegative(work, times)
    assert found[1] == 0.0
    ratios = work[:, 0] / times
    assert found[0] == pytest.approx(ratios.sum() / (ratios**2).sum())


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
def test_a_model_gives_the_factor_of_all_prices_and_the_rest(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where load from outside makes some rounds slower, for all models."""
    expected = scaled(PLANTED, 1.7, 400.0)

    def clock(models: Mapping[str, nn.Module], rounds: int) -> dict[str, np.ndarray]:
        assert len(models) == 3
        load = np.ones(rounds)
        load[: rounds // 2] = 3.0
        return {
            name: load * BATCH * LENGTH * seconds_of_modules(model, expected, LENGTH)
            for name, model in models.items()
        }

    monkeypatch.setattr(measured_model, "_forward", lambda model, inputs: model)
    monkeypatch.setattr(measured_model, "interleaved", clock)
    model = tiny.tiny_model(architecture)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = {"input_ids": torch.zeros(BATCH, LENGTH, dtype=torch.long)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fitted_to_model(PLANTED, model, inputs, LENGTH, 3)
    assert found.onednn_from is None
    for name, value in expected.as_dict().items():
        if name == "onednn_from":
            continue
        assert getattr(found, name) == pytest.approx(value, rel=1e-6), name
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not fg.gated_layers(model)


def test_times_that_no_costs_fit_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def clock(models: Mapping[str, nn.Module], rounds: int) -> dict[str, np.ndarray]:
        times = [seconds_of_modules(model, PLANTED, LENGTH) for model in models.values()]
        times[1] *= 1.3
        return {name: np.full(rounds, time) for name, time in zip(models, times, strict=True)}

    monkeypatch.setattr(measured_model, "_forward", lambda model, inputs: model)
    monkeypatch.setattr(measured_model, "interleaved", clock)
    inputs = {"input_ids": torch.zeros(BATCH, LENGTH, dtype=torch.long)}
    with pytest.warns(UserWarning, match=r"miss the measured times of Bert.* by up to \d+%"):
        fitted_to_model(PLANTED, tiny.tiny_model("bert"), inputs, LENGTH, 3)


def test_a_model_that_gets_no_faster_keeps_the_prices_of_single_matmuls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def clock(models: Mapping[str, nn.Module], rounds: int) -> dict[str, np.ndarray]:
        return {name: np.full(rounds, 1e6 * (1 + n)) for n, name in enumerate(models)}

    monkeypatch.setattr(measured_model, "interleaved", clock)
    model = tiny.tiny_model("bert")
    inputs = {"input_ids": torch.zeros(BATCH, LENGTH, dtype=torch.long)}
    with pytest.warns(UserWarning, match="takes as long with fewer dimensions"):
        found = fitted_to_model(PLANTED, model, inputs, LENGTH, 3)
    dense = 1e6 / (BATCH * LENGTH)
    assert found.product == PLANTED.product
    assert seconds_of_modules(model, found, LENGTH) == pytest.approx(dense)


@pytest.mark.filterwarnings("ignore:.*takes as long with fewer dimensions")
@pytest.mark.filterwarnings("ignore:the costs miss the measured times")
def test_a_measured_model_names_its_dtype_device_and_length() -> None:
    model = tiny.tiny_model("bert", dtype=torch.float32)
    cost = fg.calibrate(model, batch=2, length=LENGTH, repeats=3)
    assert (cost.length, cost.dtype, cost.device) == (LENGTH, "float32", "cpu")
    assert cost.product > 0
    assert cost.rest >= 0
    fg.prune(
        model, target_time=0.999, cost=cost, criterion="random", sequence_length=LENGTH,
        progress=False,
    )  # fmt: skip


def test_what_cannot_be_measured_is_refused() -> None:
    model = fg.attach(tiny.tiny_model("bert"), fg.GateConfig(sequence_length=LENGTH))
    with pytest.raises(ValueError, match="the model has gates; measure the dense one"):
        fg.calibrate(model)
    tiny.scatter_gates(model)
    with pytest.raises(ValueError, match="compact"):
        fg.calibrate(fg.compact(model.eval()))
    with pytest.raises(ValueError, match=r"give an example batch.*calibrate\(model, inputs="):
        fg.calibrate(tiny.tiny_model("t5"), batch=1, length=LENGTH, repeats=3)


def test_single_kinds_of_work_are_fitted_to_layers_of_several_sizes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of planted times, those of gathers and scatters included."""
    shape = measured_model.Shape(torch.float32, 64, 256, 4, 16)

    def of_layer(layer: Any) -> float:
        outputs, columns = layer.kept
        unit = (outputs + 5.0) * (columns + 3.0) + 2.0
        unit += 0.0 if layer.cols is None else 7.0 * columns + 11.0
        return unit + (0.0 if layer.rows is None else 13.0 * layer.out_features + 19.0)

    def clock(runs: Mapping[str, Any], rounds: int) -> dict[str, np.ndarray]:
        times = {}
        for name, run in runs.items():
            if isinstance(run, partial):
                unit = of_layer(run.func)
            elif "values" in name:
                unit = 6.0 * int(name.split()[1]) + 500.0
            else:
                heads, width = (int(word) for word in name.partition(": ")[2].split(" of "))
                unit = heads * 10 * (width + 4.0) + 300.0
            times[name] = np.full(rounds, 20 * unit)
        return times

    monkeypatch.setattr(measured_cost, "interleaved", clock)
    cost = measured_cost._with_layers(fg.CostModel(head_multiple=2), shape, 20, 3)
    found = [cost.product, cost.output, cost.input, cost.layer, cost.gather, cost.gather_call]
    assert [*found, cost.scatter, cost.scatter_call] == pytest.approx(
        [1.0, 3.0, 5.0, 17.0, 7.0, 11.0, 13.0, 19.0], rel=1e-5
    )
    cost = measured_cost._with_attention(cost, shape, 2, 10, 3)
    assert (cost.attention, cost.score, cost.activation) == pytest.approx((0.5, 4.0, 6.0))
