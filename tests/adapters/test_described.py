"""Every described type, tiny, random, offline, in float64: the compact and gated models agree."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finegates.adapters import adapter_for, described
from finegates.budget import macs, planned_macs
from finegates.compaction import compact, plan_compaction
from finegates.formats.compact import load, save
from finegates.formats.gated import load_gated, save_gated
from finegates.gates.attachment import attach
from finegates.gates.block_parts import AttentionGates, ExpertsGates
from finegates.gates.config import GateConfig
from finegates.gates.detachment import detach
from finegates.gates.penalty import penalty_of
from finegates.modules.experts import expert_shape
from support import tiny
from support.described import (
    described_inputs,
    described_model,
    described_outputs,
    heads,
    relative_difference,
)
from support.described_types import CONFIGURATIONS

TYPES = sorted(CONFIGURATIONS)
# Sums over about forty numbers in two orders, through at most three layers. The tolerance is far
# above float64's rounding (at most 1e-14 was seen) and far below the effect of a forgotten size (at
# least 1e-5 was seen).
ROUNDING = 1e-11
HEADS = [(name, head) for name in TYPES for head in heads(name)]
_LANGUAGE = [(name, head) for name, head in HEADS if head in ("causal", "seq2seq", "speech")]


def gated(name: str, head: str, preset: str, seed: int = 0, **options: Any) -> nn.Module:
    model = described_model(name, head, seed=seed, **options)
    attach(model, GateConfig(preset=preset, sequence_length=9))
    tiny.scatter_gates(model, seed, mean=0.7)
    if preset == "structured":
        close_every_kind(model, seed)
    return model.eval()


@torch.no_grad()
def close_every_kind(model: nn.Module, seed: int) -> None:
    """Closes some dimensions of every shared gate, so that each kind of narrowing occurs.

    With random gates the widest head of a module often keeps all of its dimensions. A wrong
    description of those that belong together would then pass.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in model.finegates_structure:
        for gate in part.gates():
            gate.latent.abs_()
            rows, count = 1, gate.size
            if isinstance(part, ExpertsGates):
                rows, count = part.part.count, part.part.width
            if isinstance(part, AttentionGates) and gate is part.values:
                rows, count = part.part.kv_heads, part.part.head_dim
            if isinstance(part, AttentionGates) and gate is part.heads and part.part.even:
                rows, count = part.part.kv_heads, part.part.heads // part.part.kv_heads
            least = 1 if count > 1 else 0
            for row in range(rows):
                closed = torch.randperm(count, generator=generator)[: max(least, count // 3)]
                gate.latent[row * count + closed] *= -1


_WAYS = list(itertools.product(("structured", "reference"), ("right", "left"), ("sdpa", "eager")))
# Every type with every head once, cycling through the ways.
_ONCE = [(*pair, *_WAYS[index % len(_WAYS)]) for index, pair in enumerate(HEADS)]
_ALL = [(*pair, *way) for pair in HEADS for way in _WAYS]
_REST = [pytest.param(*case, marks=pytest.mark.slow) for case in _ALL if case not in set(_ONCE)]


@pytest.mark.sampled(24)
@pytest.mark.parametrize(("name", "head", "preset", "padding", "attention"), [*_ONCE, *_REST])
def test_compact_equals_gated_and_reloads(
    name: str, head: str, preset: str, padding: str, attention: str, tmp_path: Path
) -> None:
    model = gated(name, head, preset, attention=attention)
    inputs = described_inputs(name, head, padding=padding)
    before = described_outputs(model, inputs)
    dense = described_outputs(described_model(name, head, attention=attention), inputs)
    assert relative_difference(dense, before) > 1e-2, "gates matter"
    small = compact(model)
    after = described_outputs(small, inputs)
    assert relative_difference(before, after) < ROUNDING
    assert planned_macs(model, 2, 7) == macs(small, 2, 7)
    assert plan_compaction(model).parameters[1] == sum(p.numel() for p in small.parameters())
    save(small, tmp_path / "small")
    assert relative_difference(after, described_outputs(load(tmp_path / "small"), inputs)) == 0.0
    assert relative_difference(after, described_outputs(copy.deepcopy(small), inputs)) == 0.0


@pytest.mark.parametrize("name", TYPES)
def test_every_linear_layer_of_the_transformer_layers_is_described(name: str) -> None:
    model = described_model(name)
    blocks = adapter_for(model).blocks(model)
    assert blocks
    known = {path for block in blocks for path in block.linears()}
    found = {
        path
        for path, module in model.named_modules()
        for block in blocks
        if path.startswith(f"{block.path}.") and isinstance(module, nn.Linear)
    }
    left_out = {path.rpartition(".")[2] for path in found - known}
    assert left_out <= {
        *("pos_proj", "pos_q_proj"),  # of DeBERTa's positions
        *("head_logits_proj", "head_weights_proj"),  # that mix its heads
        "reduction",  # between stages of Swin
    }


@pytest.mark.sampled(16)
@pytest.mark.parametrize("name", TYPES)
def test_shared_gates_meet_their_budget(name: str) -> None:
    model = described_model(name)
    attach(model, GateConfig(preset="structured", target=0.4, sequence_length=9))
    penalty = penalty_of(model, model.finegates_config)
    penalty.progress = 1.0
    generator = torch.Generator().manual_seed(0)
    for gate in penalty.gates():
        gate.importance.copy_(torch.rand(gate.size, generator=generator))
    kept = penalty.close_least()
    # One dimension of a tiny model is a few per cent of it.
    assert 0.5 < kept < 0.7
    small = compact(model)
    counted = macs(small, 1, 9).total / macs(described_model(name), 1, 9).total
    assert counted == pytest.approx(kept, abs=1e-6)


@pytest.mark.sampled(16)
@pytest.mark.parametrize("preset", ["structured", "reference"])
@pytest.mark.parametrize(("name", "head"), _LANGUAGE, ids=[f"{n}-{h}" for n, h in _LANGUAGE])
def test_generation_is_that_of_the_gated_model(name: str, head: str, preset: str) -> None:
    """Greedy and beam search, with a growing cache, a static cache, and no cache."""
    model = gated(name, head, preset)
    inputs = described_inputs(name, head, padding="left")
    for key in ("decoder_input_ids", "encoder_hidden_states"):  # generate does not take them here
        inputs.pop(key, None)
    small = compact(model)
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 47}
    options |= {"pad_token_id": 0}
    ways: list[dict[str, Any]] = [{}, {"num_beams": 3}, {"use_cache": False}]
    if getattr(type(model), "_can_compile_fullgraph", False):
        ways.append({"cache_implementation": "static", "disable_compile": True})
    for way in ways:
        try:
            expected = model.generate(**inputs, **options, **way)
        except (ValueError, RuntimeError):
            assert "cache_implementation" in way, "all but caches of a fixed size work for all"
            continue
        assert torch.equal(expected, small.generate(**inputs, **options, **way)), way


@pytest.mark.parametrize("name", ["gemma2", "smollm3", "ministral3", "modernbert", "phi3"])
def test_positions_beyond_windows_and_original_lengths_count_alike(name: str) -> None:
    model = gated(name, "base", "structured")
    inputs = described_inputs(name, length=90)
    small = compact(model)
    outputs = [described_outputs(m, inputs) for m in (model, small)]
    assert relative_difference(*outputs) < ROUNDING


@pytest.mark.sampled(16)
@pytest.mark.parametrize("name", TYPES)
def test_training_goes_on_with_the_gradients_of_the_gated_model(name: str) -> None:
    """Gradients of parameters outside the layers, such as embeddings, also with checkpointing."""
    model = gated(name, "base", "structured")
    inputs = described_inputs(name)
    if "attention_mask" in inputs:  # fully masked rows have no gradient in some types
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    stacks = adapter_for(model).encoder(model)
    below = [n for n, _ in model.named_parameters() if not n.startswith(stacks)]
    found: list[list[torch.Tensor]] = []
    for each in (model, compact(model)):
        for parameter in each.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        for checkpointing in (False, True):
            if checkpointing and not each.supports_gradient_checkpointing:
                continue
            if checkpointing:
                each.gradient_checkpointing_enable()
            each.zero_grad()
            next(iter(each(**inputs).values())).square().sum().backward()
            grads = [each.get_parameter(name).grad for name in below]
            found.append([grad.clone() for grad in grads if grad is not None])
    assert found[0]
    for one, other in itertools.pairwise(found):
        assert relative_difference(one, other) < 1e-6  # some norms are computed in float32


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gemma", {"pairs": "next"}),
        ("cohere", {"order": "twice"}),
        ("glm4", {"rotated": None}),
    ],
)
def test_a_wrong_description_of_rotary_embeddings_is_noticed(
    name: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suite's requirements fail for a wrong spec."""
    _plant(monkeypatch, name, rotary=change)
    model = gated(name, "base", "structured")
    inputs = described_inputs(name)
    before = described_outputs(model, inputs)
    try:
        after = described_outputs(compact(model), inputs)
    except (RuntimeError, IndexError):
        return
    assert relative_difference(before, after) > 1e-5


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("falcon", {"scaled_by_width": False}),
        ("gpt_neox", {"layout": "qkv"}),
        ("qwen3_5_text", {"norm": None}),
        ("olmo2", {"norm": None}),
        ("deberta", {"value_bias": False, "fixed_scores": False}),
        ("bloom", {"head_arguments": {}}),
        ("swin", {"per_head": {}}),
        ("phi3", {"config_sizes": {}}),
    ],
)
def test_a_wrong_description_of_an_attention_is_noticed(
    name: str, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _plant(monkeypatch, name, **change)
    worst = 0.0
    for seed, preset in ((0, "structured"), (1, "structured"), (0, "reference")):
        model = gated(name, "base", preset, seed)
        inputs = described_inputs(name)
        before = described_outputs(model, inputs)
        try:
            after = described_outputs(compact(model), inputs)
        except (RuntimeError, IndexError, ValueError):
            return
        worst = max(worst, relative_difference(before, after))
    assert worst > 1e-5


def _plant(monkeypatch: pytest.MonkeyPatch, name: str, **change: Any) -> None:
    """Changes the specs of a model's attentions."""
    specs = dict(described._attention_specs())
    model = described_model(name)
    changed = 0
    for module in model.modules():
        spec = described._spec(module, specs)
        if spec is None:
            continue
        values = dict(change)
        if isinstance(values.get("rotary"), dict):
            values["rotary"] = dataclasses.replace(spec.rotary, **values["rotary"])
        new = dataclasses.replace(spec, **values)
        specs.update(dict.fromkeys(new.classes, new))
        changed += 1
        break
    assert changed
    monkeypatch.setattr(described, "_attention_specs", lambda: specs)


def test_heads_become_narrower_than_any_norm_over_them_was() -> None:
    model = gated("gemma3_text", "base", "structured")
    plan = plan_compaction(model)
    assert any(sizes.width < sizes.head_dim for sizes in plan.heads.values())


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_experts_lose_the_dimensions_that_matter_least_in_each(name: str) -> None:
    model = described_model(name)
    attach(model, GateConfig(preset="structured", target=0.6, sequence_length=9))
    penalty = penalty_of(model, model.finegates_config)
    penalty.progress = 1.0
    generator = torch.Generator().manual_seed(0)
    for gate in penalty.gates():
        gate.importance.copy_(torch.rand(gate.size, generator=generator))
    penalty.close_least()
    narrower = 0
    for part in penalty.structure:
        if not isinstance(part, ExpertsGates):
            continue
        closed = part.hidden.closed().view(part.part.count, -1)
        for row, importance in zip(closed, part.hidden.importance.view_as(closed), strict=True):
            assert not row.any() or row.all() or importance[row].max() < importance[~row].min()
        module = compact(model).get_submodule(part.part.path)
        assert expert_shape(module)[2] == part.part.aligned(int((~closed).sum(1).max()))
        narrower += expert_shape(module)[2] < part.part.width
    assert narrower


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_gates_on_experts_are_kept_and_taken_off_and_folded(name: str, tmp_path: Path) -> None:
    inputs = described_inputs(name)
    dense = described_outputs(described_model(name), inputs)
    model = gated(name, "base", "structured")
    before = described_outputs(model, inputs)
    save_gated(model, tmp_path / "gated")
    again = load_gated(tmp_path / "gated")
    assert relative_difference(described_outputs(again, inputs), before) == 0.0
    folded = detach(copy.deepcopy(model), fold=True)
    assert relative_difference(described_outputs(folded, inputs), before) < ROUNDING
    assert relative_difference(described_outputs(detach(model), inputs), dense) == 0.0


@pytest.mark.parametrize("experts", ["grouped_mm", "batched_mm"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_narrowed_experts_can_be_multiplied_in_groups(name: str, experts: str) -> None:
    model = described_model(name, dtype=torch.float32, experts=experts)
    inputs = described_inputs(name)
    attach(model, GateConfig(preset="structured", sequence_length=9))
    close_every_kind(model, 0)
    outputs = [described_outputs(m, inputs) for m in (model.eval(), compact(model))]
    assert relative_difference(*outputs) < 1e-4  # float32, and routers compare rounded numbers


def test_every_expert_trains_its_gate() -> None:
    model = gated("mixtral", "base", "structured").train()
    gates = [part.hidden for part in model.finegates_structure if isinstance(part, ExpertsGates)]
    model(**described_inputs("mixtral")).last_hidden_state.square().sum().backward()
    for gate in gates:
        assert gate.scale.grad is not None
        open_ones = gate.latent > 0
        assert (gate.scale.grad[open_ones] != 0).float().mean() > 0.9


def test_one_layer_for_gate_and_up_loses_rows_of_both() -> None:
    model = gated("phi3", "base", "structured")
    small = compact(model)
    for block in adapter_for(model).blocks(model):
        feed = block.feed_forward
        assert feed is not None
        assert feed.is_fused
        up, down = small.get_submodule(feed.up), small.get_submodule(feed.down)
        assert up.out_features == 2 * down.in_features
        assert down.in_features < down.dense_shape[1]
