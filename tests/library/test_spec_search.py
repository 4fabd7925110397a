"""Specs are found by search and certified by replay; wrong ones are rejected."""

from __future__ import annotations

import copy
import functools
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

import finegates as fg
from finegates import adapters
from finegates.adapters import AttentionSpec, FeedForwardSpec
from finegates.spec_search.description import Description, describe
from finegates.spec_search.replay import OnlyAdapter
from support.closed_by_description import pruned
from support.described import (
    EXPERTS,
    described_inputs,
    described_model,
    described_outputs,
    relative_difference,
)

# Types that a search by names describes completely; others need facts that names do not give.
WHOLE = [
    *("albert", "camembert", "distilbert", "electra", "modernbert", "nomic_bert"),
    *("gemma", "gemma2", "gemma3_text", "granite", "olmo", "olmo2", "smollm3", "starcoder2"),
    *("cohere", "gpt_neox", "gpt_neo", "opt", "qwen3_moe", "phi", "stablelm"),
    *("bart", "whisper", "vit", "dinov2", "clip", "wav2vec2"),
]
PARTLY = [
    "esm",
    "phi3",
    "glm4",
    "gptj",
    "deberta",
    "bloom",
    "swin",
    "falcon",
    "gpt_oss",
    "nemotron",
]


@functools.cache
def found(name: str) -> Description:
    return describe(described_model(name), described_inputs(name), known=OnlyAdapter())


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", WHOLE)
def test_heads_and_all_dimensions_are_found(name: str) -> None:
    specs = found(name).specs
    attentions = [spec for spec in specs if isinstance(spec, AttentionSpec)]
    assert attentions
    assert not any(spec.fixed_heads or spec.fixed_scores for spec in attentions)
    if name != "qwen3_moe":  # its experts need no spec
        assert any(isinstance(spec, FeedForwardSpec) for spec in specs)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "joint"), [("vit", True), ("gemma", True), ("albert", False), ("phi3", False)]
)
def test_layers_that_read_the_same_are_found_to_be_one_matmul(name: str, joint: bool) -> None:
    """ALBERT's attention adds its input to its output, so that its input stays what it is."""
    (spec,) = (each for each in found(name).specs if isinstance(each, AttentionSpec))
    assert spec.joint == joint
    assert "joint=True" in str(found(name)) or not joint


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", [*WHOLE, *PARTLY])
def test_what_is_found_is_exact_in_the_whole_model(name: str) -> None:
    """Random plans once certified two wrong specs for heads with few dimensions."""
    model, inputs = described_model(name), described_inputs(name, padding="left", seed=1)
    description = found(name)
    for seed in range(3):
        gated, small = pruned(model, description, seed)
        before, after = (described_outputs(m, inputs) for m in (gated, small))
        assert relative_difference(before, after) < 1e-11


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", [*WHOLE, *PARTLY])
def test_what_is_printed_is_a_program_that_registers_the_same_specs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[tuple[Any, ...]] = []
    monkeypatch.setattr(adapters, "register", lambda *specs: registered.append(specs))
    exec(str(found(name)), {})
    assert registered == [found(name).specs]


def test_a_description_that_reads_a_path_is_printed_with_the_function_that_reads_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapters, "register", lambda *specs: None)
    text = str(found("bart"))
    assert "cross=is_named_cross" in text
    exec(text, {})


def test_without_specs_nothing_but_comments_is_printed() -> None:
    known = fg.describe(described_model("vit"), described_inputs("vit"))
    assert str(known) == "# all that is searched has a description"


def test_an_adapter_of_some_specs_knows_all_of_them() -> None:
    specs = [
        FeedForwardSpec(("bart.BartEncoderLayer",)),
        FeedForwardSpec(("bart.BartDecoderLayer",)),
    ]
    layers = [*described_model("bart").encoder.layers, *described_model("bart").decoder.layers]
    assert all(OnlyAdapter(*specs).knows(layer) for layer in layers)


def test_the_search_logs_what_it_finds_and_not_what_it_tries(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    with caplog.at_level(logging.INFO):
        describe(described_model("vit"), described_inputs("vit"), known=OnlyAdapter())
    assert not recwarn.list
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("fineg")]
    assert sorted(lines) == ["described vit.ViTAttention", "described vit.ViTMLP"]


def test_nothing_is_searched_where_all_is_known() -> None:
    assert fg.describe(described_model("vit"), described_inputs("vit")).specs == ()


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_multiplied_in_groups_are_searched_like_others(name: str) -> None:
    """torch has no grouped product in float64; the default of transformers for experts is one."""
    model = described_model(name, experts="grouped_mm", dtype=torch.float32)
    description = describe(model, described_inputs(name), known=OnlyAdapter())
    assert model.config._experts_implementation == "grouped_mm"
    assert description == found(name)


class Odd(nn.Module):
    """Looks like an attention, but mixes each query dimension with the next."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.head_dim = 6
        self.num_heads = 4
        self.q_proj, self.k_proj = inner.q_proj, inner.k_proj
        self.v_proj, self.o_proj = inner.v_proj, inner.o_proj

    def forward(
        self, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        q, k, v = (layer(hidden_states) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj((q + q.roll(1, -1)).sigmoid() * k + v.roll(1, -1)), None


def test_what_no_description_fits_is_left_whole() -> None:
    model = described_model("vit")
    for layer in model.layers:
        layer.attention = Odd(layer.attention).double()
    description = describe(model, described_inputs("vit"), known=OnlyAdapter())
    assert not [spec for spec in description.specs if isinstance(spec, AttentionSpec)]
    assert [spec for spec in description.specs if isinstance(spec, FeedForwardSpec)]
    (note,) = (note for note in description.notes if "Odd" in note)
    assert "Odd: no description is exact (the compact layer differs from the gated one by" in note


class SomeMix(nn.Module):
    """An attention whose heads see each other in some layers."""

    def __init__(self, mixes: bool | float) -> None:
        super().__init__()
        self.head_dim, self.num_heads, self.mixes = 6, 4, mixes
        if isinstance(mixes, float):
            self.mixes = nn.Parameter(torch.full((1,), mixes))
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(24, 24) for _ in range(4))

    def forward(self, hidden_states: Tensor) -> Tensor:
        shape = (*hidden_states.shape[:2], -1, self.head_dim)
        q, k, v = (
            layer(hidden_states).view(shape).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        context = nn.functional.scaled_dot_product_attention(q, k, v)
        if self.mixes is not False:
            context = context - self.mixes * context.mean(1, keepdim=True)
        return self.o_proj(context.transpose(1, 2).reshape(hidden_states.shape))


class AttentionLayer(GradientCheckpointingLayer):
    def __init__(self, mixes: bool | float) -> None:
        super().__init__()
        self.attention = SomeMix(mixes)

    def forward(self, states: Tensor) -> Tensor:
        return states + self.attention(states)


class Stack(nn.Module):
    def __init__(self, mixing: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AttentionLayer(index in mixing) for index in range(5))

    def forward(self, states: Tensor) -> Tensor:
        for layer in self.layers:
            states = layer(states)
        return states


def test_a_class_is_described_only_if_it_is_in_every_layer_as_described() -> None:
    """Neither the first, the middle nor the last of these layers mixes its heads."""
    states = {"states": torch.randn(2, 9, 24, dtype=torch.float64)}
    for mixing, found_in in (((), 1), ((1, 3), 0)):
        torch.manual_seed(0)
        description = describe(Stack(mixing).double(), states)
        assert len(description.specs) == found_in


@pytest.mark.parametrize("start", [0.0, 1e-12, None])
def test_a_dependence_that_training_has_yet_to_show_is_found(start: float | None) -> None:
    """What starts at zero, as a scale of layers may, hides nothing: a parameter, or a buffer."""
    torch.manual_seed(0)
    model = Stack(())
    for layer in model.layers:
        layer.attention = SomeMix(start or 0.0)
        if start is None:
            del layer.attention.mixes
            layer.attention.register_buffer("mixes", torch.zeros(1), persistent=False)
    states = {"states": torch.randn(2, 9, 24, dtype=torch.float64)}
    before = copy.deepcopy(model.double())
    assert describe(model, states).specs == ()
    for kind in ("parameters", "buffers"):
        pairs = zip(getattr(model, kind)(), getattr(before, kind)(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("start", [0.0, 1e-9])
@pytest.mark.parametrize("name", ["dinov2", "gpt_neox", "bart", "gemma3_text", "wav2vec2"])
def test_what_starts_at_zero_is_described_as_after_training(name: str, start: float) -> None:
    """Biases, scales of layers, and layers that write to the residual stream."""
    model = described_model(name)
    for path, parameter in model.named_parameters():
        writes = any(key in path for key in ("o_proj", "out_proj", "fc2", "dense", "down"))
        if parameter.dim() == 1 or "lambda" in path or writes:
            parameter.data.fill_(start)
    description = describe(model, described_inputs(name), known=OnlyAdapter())
    assert description == found(name)


class Switched(SomeMix):
    """An attention whose heads are mixed if a parameter is large, or a buffer is zero."""

    def __init__(self, switch: float, buffer: float) -> None:
        super().__init__(False)
        self.switch = nn.Parameter(torch.tensor([switch]))
        self.register_buffer("buffer", torch.tensor([buffer]), persistent=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        self.mixes = float(self.switch > 9 or self.buffer == 0)
        return super().forward(hidden_states)


@pytest.mark.parametrize(
    ("switch", "buffer", "count"), [(1.0, 1.0, 1), (10.0, 1.0, 0), (1.0, 0.0, 0)]
)
def test_the_numbers_of_the_model_are_tried_as_they_are_too(
    switch: float, buffer: float, count: int
) -> None:
    states = {"states": torch.randn(2, 9, 24, dtype=torch.float64)}
    torch.manual_seed(0)
    model = Stack(())
    for layer in model.layers:
        layer.attention = Switched(switch, buffer)
    assert len(describe(model.double(), states).specs) == count
