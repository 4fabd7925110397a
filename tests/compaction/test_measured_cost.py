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
from finegates.compaction.measured_batch import Batch, measured_batch
from finegates.compaction.measured_model import fitted_to_model, nonnegative, scaled
from finegates.compaction.merging import merged_copy
from support import tiny
from support.times import seconds_of_modules

LENGTH, BATCH = 7, 3
PLANTED = fg.CostModel(
    product=1.0, gather=3.0, scatter=2.0, head_multiple=2, output=0.7, input=0.4, layer=17.0,
    gather_call=29.0, scatter_call=23.0,
    attention=1.3, score=5.0, activation=11.0, length=LENGTH,
)  # fmt: skip


def batch() -> Batch:
    return Batch({"input_ids": torch.zeros(BATCH, LENGTH, dtype=torch.long)}, BATCH, LENGTH)


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


@pytest.mark.parametrize("adapters", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
def test_a_model_gives_the_factor_of_all_prices_and_the_rest(
    architecture: str, adapters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where load from outside makes some rounds slower, for all models.

    Adapters are merged in each of them, as in the model whose time is predicted.
    """
    expected = scaled(PLANTED, 1.7, 400.0)

    def clock(models: Mapping[str, nn.Module], rounds: int) -> dict[str, np.ndarray]:
        assert len(models) == 3
        for timed in models.values():
            assert not any(hasattr(module, "lora_A") for module in timed.modules())
        load = np.ones(rounds)
        load[: rounds // 2] = 3.0
        return {
            name: load * BATCH * LENGTH * seconds_of_modules(model, expected, LENGTH)
            for name, model in models.items()
        }

    monkeypatch.setattr(measured_model, "_forward", lambda model, inputs: model)
    monkeypatch.setattr(measured_model, "interleaved", clock)
    model = tiny.tiny_model(architecture)
    if adapters:
        model = fg.add_lora(model, rank=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fitted_to_model(PLANTED, model, batch(), 3)
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
    with pytest.warns(UserWarning, match=r"miss the measured times of Bert.* by up to \d+%"):
        fitted_to_model(PLANTED, tiny.tiny_model("bert"), batch(), 3)


def test_a_model_that_gets_no_faster_keeps_the_prices_of_single_matmuls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def clock(models: Mapping[str, nn.Module], rounds: int) -> dict[str, np.ndarray]:
        return {name: np.full(rounds, 1e6 * (1 + n)) for n, name in enumerate(models)}

    monkeypatch.setattr(measured_model, "interleaved", clock)
    model = tiny.tiny_model("bert")
    with pytest.warns(UserWarning, match="takes as long with fewer dimensions"):
        found = fitted_to_model(PLANTED, model, batch(), 3)
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
    with pytest.raises(ValueError, match="the model is compact .* measure the model that it was"):
        fg.calibrate(fg.compact(model.eval()))
    with pytest.raises(ValueError, match=r"give an example batch.*calibrate\(model, inputs="):
        fg.calibrate(tiny.tiny_model("t5"), batch=1, length=LENGTH, repeats=3)


def test_a_merged_copy_computes_the_same_without_changing_the_model() -> None:
    model = fg.add_lora(tiny.tiny_model("bert"), rank=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    inner, inputs = model.base_model.model, tiny.tokens()  # type: ignore[union-attr]
    merged = merged_copy(inner)  # type: ignore[arg-type]
    assert not any(hasattr(module, "lora_A") for module in merged.modules())
    assert any(hasattr(module, "lora_A") for module in model.modules())
    expected = tiny.output(model.eval(), inputs)
    torch.testing.assert_close(tiny.output(merged.eval(), inputs), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("inputs", "asked", "expected"),
    [
        (None, {}, (8, 128)),
        (None, {"sequences": 3, "length": 5}, (3, 5)),
        ({"input_ids": (4, 16)}, {}, (4, 16)),
        ({"input_ids": (4, 16)}, {"sequences": 4, "length": 16}, (4, 16)),
        ({"inputs_embeds": (2, 9, 32)}, {}, (2, 9)),
        ({"pixel_values": (2, 3, 8, 8)}, {"length": 17}, (2, 17)),
        ({"use_cache": None, "attention_mask": (4, 16), "input_ids": (4, 16)}, {}, (4, 16)),
    ],
)
def test_a_batch_has_the_sequences_and_tokens_of_its_inputs(
    inputs: dict[str, Any] | None, asked: dict[str, int], expected: tuple[int, int]
) -> None:
    model = tiny.tiny_model("bert")
    given = inputs and {
        name: False if shape is None else torch.zeros(shape) for name, shape in inputs.items()
    }
    found = measured_batch(model, **asked, inputs=given)
    assert (found.sequences, found.length) == expected
    if given is None:
        assert found.inputs["input_ids"].shape == expected
    else:
        assert found.inputs == given


IDS = torch.zeros(4, 16, dtype=torch.long)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch": 0}, ValueError, "batch must be at least 1, got 0"),
        ({"batch": -1}, ValueError, "batch must be at least 1, got -1"),
        ({"length": 0}, ValueError, "length must be at least 1, got 0"),
        ({"length": 16.0}, TypeError, "length must be an integer, got a float"),
        ({"repeats": 0}, ValueError, "repeats must be at least 1, got 0"),
        ({"repeats": -3}, ValueError, "repeats must be at least 1, got -3"),
        ({"tokens": 0}, ValueError, "tokens must be at least 1, got 0"),
        ({"width": True}, TypeError, "width must be an integer, got True"),
        ({"inputs": {}}, ValueError, "inputs hold no tensor of a batch .they are empty.*leave inp"),
        ({"inputs": {"use_cache": False}}, ValueError, "no tensor of a batch .use_cache.*leave"),
        ({"inputs": IDS}, TypeError, "inputs must be keyword arguments .* got a Tensor"),
        (
            {"inputs": {"input_ids": IDS}, "length": 128}, ValueError,
            "length=128, and input_ids of inputs is 4 x 16, so length is 16; leave length out",
        ),
        (
            {"inputs": {"input_ids": IDS}, "batch": 8}, ValueError,
            "batch=8, and input_ids of inputs is 4 x 16, so batch is 4; leave batch out",
        ),
        ({"inputs": {"input_ids": IDS[:0]}}, ValueError, "0 x 16, which is empty; give a batch"),
        (
            {"inputs": {"pixel_values": torch.zeros(2, 3, 8, 8)}}, ValueError,
            r"inputs do not say how many tokens .*pixel_values is 2 x 3 x 8 x 8.*give length=",
        ),
        (
            {"length": 500, "batch": 2}, ValueError,
            r"embeddings is \d+\) cannot compute .*batch=2, length=500: .*give a length",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_argument_is_refused_by_name_before_anything_is_measured(
    options: dict[str, Any], error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clock(*_: Any) -> None:
        raise AssertionError("something was measured")

    for module in (measured_cost, measured_model):
        monkeypatch.setattr(module, "interleaved", clock)
    monkeypatch.setattr(measured_cost, "_median", clock)
    with pytest.raises(error, match=message):
        fg.calibrate(tiny.tiny_model("bert", dtype=torch.float32), **options)


@pytest.mark.parametrize("option", ["batch", "length", "width", "tokens", "repeats"])
def test_so_it_is_without_a_model(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
        fg.calibrate(None, **{option: 0})  # type: ignore[arg-type]


def test_calibration_draws_no_numbers_of_the_random_state() -> None:
    before = torch.get_rng_state()
    fg.calibrate(width=16, tokens=16, repeats=1)
    assert torch.equal(before, torch.get_rng_state())


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
