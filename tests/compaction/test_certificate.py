"""A compact model is compared with the gated one on given inputs; a difference is located."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from finegates.compaction import compact
from finegates.compaction.certificate import NotEqualError
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.wrappers import has_autocast
from support import tiny
from support.described import EXPERTS, described_inputs, described_model


def gated(architecture: str = "llama", dtype: torch.dtype = torch.float32) -> nn.Module:
    model = attach(tiny.tiny_model(architecture, dtype=dtype), GateConfig())
    tiny.scatter_gates(model, 0, mean=0.7)
    return model


@pytest.mark.parametrize("architecture", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("in_double", [False, True])
def test_equal_models_pass_and_the_gated_one_is_left_as_it_was(
    architecture: str, inplace: bool, in_double: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = gated(architecture).train()
    model.get_submodule("score" if architecture == "llama" else "").eval()
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    dtype = torch.float64 if in_double else None
    with caplog.at_level(logging.INFO, logger="finegates.compaction.certificate"):
        small = compact(model, inplace=inplace, verify=tiny.tokens(), verify_dtype=dtype)
    assert "compact equals gated" in caplog.text
    assert not small.training
    assert next(small.parameters()).dtype == torch.float32
    if not inplace:
        assert [module.training for module in model.modules()] == modes
        after = model.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before if name in after)


def test_a_wrong_weight_is_found_and_its_layer_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from finegates.compaction import transform

    model = gated("llama", torch.float64)
    original = transform._shrink
    calls = {"number": 0}

    def wrong(layer: Any, plan: Any) -> Any:
        small = original(layer, plan)
        if plan.path.endswith("layers.1.self_attn.o_proj"):
            small.weight.data[0, 0] *= 1.25
            calls["number"] += 1
        return small

    monkeypatch.setattr(transform, "_shrink", wrong)
    with pytest.raises(NotEqualError, match=r"part at model.layers.1.self_attn.o_proj "):
        compact(model, verify=tiny.tokens())
    assert calls["number"] == 1
    compact(model)  # without inputs there is no comparison


def test_an_error_that_float32_hides_is_found_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    from finegates.compaction import transform

    model = gated("bert")
    original = transform._shrink

    def wrong(layer: Any, plan: Any) -> Any:
        small = original(layer, plan)
        small.weight.data *= 1 + 1e-5
        return small

    monkeypatch.setattr(transform, "_shrink", wrong)
    compact(model, verify=tiny.tokens())
    with pytest.raises(NotEqualError, match="float64"):
        compact(model, verify=tiny.tokens(), verify_dtype=torch.float64)


def test_a_model_under_autocast_is_compared_in_its_own_precision() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    model = gated("bert")
    AcceleratorState._reset_state(reset_partial_state=True)  # another test may have created one
    try:
        Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert has_autocast(model)
    compact(model, verify=tiny.tokens(), verify_dtype=torch.float64)


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_multiplied_in_groups_are_compared_in_float64(name: str) -> None:
    """torch has no grouped product in float64; the default of transformers for experts is one."""
    model = described_model(name, experts="grouped_mm", dtype=torch.float32)
    attach(model, GateConfig(sequence_length=9))
    tiny.scatter_gates(model, mean=0.7)
    small = compact(model, verify=described_inputs(name), verify_dtype=torch.float64)
    for each in (model, small):
        assert each.config._experts_implementation == "grouped_mm"


@dataclass
class Scores:
    logits: torch.Tensor


class Marked(nn.Module):
    """A model that returns something made of its logits."""

    def __init__(self, inner: nn.Module, result: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.result, self.config = inner, result, inner.config

    def forward(self, **inputs: torch.Tensor) -> Any:
        return self.result(self.inner(**inputs).logits)


def marked(scores: torch.Tensor, mark: float, most: bool = False) -> torch.Tensor:
    """The scores behind one or many columns that are forbidden."""
    return torch.cat([scores.new_full((len(scores), 90 if most else 1), mark), scores], -1)


RESULTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "lowest": lambda scores: marked(scores, torch.finfo(scores.dtype).min),
    "far": lambda scores: marked(scores, -1e9),
    "most": lambda scores: marked(scores, -1e9, most=True),
    "near": lambda scores: marked(scores, -1e4),
    "added": lambda scores: torch.cat([scores - 1e9, scores], -1),
    "dataclass": Scores,
    "nested": lambda scores: {"all": [Scores(scores)]},
}


@pytest.mark.parametrize("in_double", [False, True])
@pytest.mark.parametrize("kind", RESULTS)
def test_marks_of_forbidden_places_and_containers_hide_no_difference(
    kind: str, in_double: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tolerance relative to -1e9 would accept everything."""
    from finegates.compaction import transform

    model = Marked(gated("llama"), RESULTS[kind])
    dtype = torch.float64 if in_double else None
    compact(model, verify=tiny.tokens(), verify_dtype=dtype)
    original = transform._shrink

    def wrong(layer: Any, plan: Any) -> Any:
        small = original(layer, plan)
        small.weight.data *= 1.25
        return small

    monkeypatch.setattr(transform, "_shrink", wrong)
    with pytest.raises(NotEqualError, match="differs"):
        compact(model, verify=tiny.tokens(), verify_dtype=dtype)


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (lambda scores: scores.argmax(-1), "no floating-point numbers"),
        (lambda scores: scores * float("nan"), "not finite"),
    ],
)
def test_a_model_without_numbers_to_compare_is_refused_before_it_changes(
    result: Callable[[torch.Tensor], Any], text: str
) -> None:
    model = Marked(gated("llama"), result)
    layers = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=f"Marked gives .*{text}.*verify"):
        compact(model, inplace=True, verify=tiny.tokens())
    assert [type(module) for module in model.modules()] == layers


class Turned(Marked):
    """Multiplies its logits by the imaginary parts of a buffer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner, lambda scores: scores * self.turns.imag)
        angles = torch.rand(1)
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))


@pytest.mark.parametrize("in_double", [False, True])
def test_complex_numbers_stay_complex(in_double: bool) -> None:
    model = Turned(gated("llama"))
    compact(model, verify=tiny.tokens(), verify_dtype=torch.float64 if in_double else None)


@pytest.mark.parametrize("in_double", [False, True])
def test_random_numbers_of_a_forward_pass_are_the_same_for_both_models(in_double: bool) -> None:
    """ViTMAE hides random patches, also in evaluation mode."""
    model = described_model("vit_mae")
    attach(model, GateConfig(sequence_length=9))
    tiny.scatter_gates(model, mean=0.7)
    inputs = {"pixel_values": described_inputs("vit_mae")["pixel_values"]}
    state = torch.get_rng_state()
    compact(model, verify=inputs, verify_dtype=torch.float64 if in_double else None)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_empty_cache_is_left_empty_and_a_full_one_is_refused() -> None:
    model = tiny.tiny_model("llama", "language")
    attach(model, GateConfig())
    tiny.scatter_gates(model, mean=0.7)
    ids = tiny.tokens()["input_ids"]
    cache = DynamicCache(config=model.config)
    compact(model, verify={"input_ids": ids, "past_key_values": cache})
    assert cache.get_seq_length() == 0
    model(input_ids=ids, past_key_values=cache)
    with pytest.raises(ValueError, match=r"cache \(past_key_values\) that holds 7 .*leave it out"):
        compact(model, verify={"input_ids": ids, "past_key_values": cache})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"verify": torch.zeros(1, 3)}, "keyword arguments"),
        ({"verify": tiny.tokens(), "verify_dtype": torch.float16}, "float64 or None"),
    ],
)
def test_other_inputs_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        compact(gated(), **options)
