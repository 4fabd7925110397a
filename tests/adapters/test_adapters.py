"""The conformance suite: every architecture, tiny, random and offline, passes every test."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from finegates.adapters import adapter_for, unwrap
from finegates.budget import macs, measure_budget, planned_macs
from finegates.compaction import CompactLinear, compact, plan_compaction
from finegates.formats.compact import load, save
from finegates.gates.attachment import attach, attach_fixed
from finegates.gates.config import GateConfig
from finegates.gates.gated_linear import GatedLinear, gated_layers
from finegates.gates.open_fractions import SparsityPenalty
from finegates.modules.linear import linear_shape
from support import tiny
from support.tolerance import model_bound

ARCHITECTURES = sorted(tiny.ARCHITECTURES)
pytestmark = pytest.mark.parametrize("architecture", ARCHITECTURES)


def gated_model(
    architecture: str, variant: str = "classifier", seed: int = 0, **overrides: object
) -> nn.Module:
    model = attach(
        tiny.tiny_model(architecture, variant, seed=seed, **overrides),
        GateConfig(preset="reference"),
    )
    tiny.scatter_gates(model, seed)
    return model.eval()


def lora_model(architecture: str, **options: object) -> nn.Module:
    """A classifier with random non-zero low-rank factors on its head and all its linear layers."""
    base = tiny.tiny_model(architecture)
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=adapter_for(base).gated(base), **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(0.0, 0.3, generator=generator)
    return model.to(torch.float64).eval()


def assert_equal_outputs(small: nn.Module, model: nn.Module) -> None:
    """Compact and gated outputs agree within the derived bound."""

    def some_numbers(m: nn.Module) -> torch.Tensor:
        # The bound takes one derivative for each number: all logits of a classifier, else 14
        # outputs.
        numbers = tiny.output(m, tiny.tokens()).flatten()
        return numbers[:: max(1, numbers.numel() // 14)]

    bound = model_bound(model, some_numbers)
    difference = (some_numbers(small) - some_numbers(model)).abs()
    assert (difference <= bound).all()
    assert float(bound.max()) < 1e-9


def assert_same_bits(first: nn.Module, second: nn.Module) -> None:
    assert torch.equal(tiny.output(first, tiny.tokens()), tiny.output(second, tiny.tokens()))


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_blocks_name_linear_layers_of_consistent_shapes(architecture: str, variant: str) -> None:
    model = tiny.tiny_model(architecture, variant)
    adapter = adapter_for(model)
    blocks = adapter.blocks(model)
    stacks = adapter.encoder(model)
    assert len(blocks) == sum(
        len(model.get_submodule(s).get_submodule("layer"))
        if hasattr(model.get_submodule(s), "layer")
        else len(model.get_submodule(s))
        for s in stacks
    )
    hidden = model.config.hidden_size
    for block in blocks:
        assert block.path.startswith(tuple(f"{stack}." for stack in stacks))
        shapes = {path: linear_shape(model.get_submodule(path)) for path in block.linears()}
        assert block.attentions
        for part in block.attentions:
            model.get_submodule(part.path)
            queries, keys = part.heads * part.head_dim, part.kv_heads * part.head_dim
            if part.is_fused:
                assert shapes[part.q] == (hidden, queries + 2 * keys)
            else:
                assert shapes[part.q] == (hidden, queries)
                assert shapes[part.k] == shapes[part.v] == (hidden, keys)
            assert shapes[part.o] == (queries, hidden)
            assert part.heads % part.kv_heads == 0
        feed = block.feed_forward
        assert feed is not None
        assert shapes[feed.up] == (hidden, 20)
        assert shapes[feed.down] == (20, hidden)
        if feed.gate is not None:
            assert shapes[feed.gate] == shapes[feed.up]


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_head_and_encoder_are_apart(architecture: str, variant: str) -> None:
    model = tiny.tiny_model(architecture, variant)
    adapter = adapter_for(model)
    head = adapter.head(model)
    assert len(head) == len(set(head))
    for path in head:
        assert next(model.get_submodule(path).parameters(), None) is not None
        assert not path.startswith(adapter.encoder(model))
    if variant != "base":
        assert any("." not in path for path in head), "something outside the base model"


def test_gated_differs_from_base(architecture: str) -> None:
    base = tiny.tiny_model(architecture)
    model = gated_model(architecture)
    expected = [path for block in adapter_for(base).blocks(base) for path in block.linears()]
    assert sorted(gated_layers(model)) == sorted(expected)
    difference = tiny.output(model, tiny.tokens()) - tiny.output(base, tiny.tokens())
    assert (difference.abs() > 1e-3).any()


@pytest.mark.sampled
@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_compact_equals_gated_and_reloads(architecture: str, variant: str, tmp_path: Path) -> None:
    model = gated_model(architecture, variant)
    before = tiny.output(model, tiny.tokens())
    model.train()
    small = compact(model)
    assert model.training, "the given model is left as it was"
    assert not small.training
    assert torch.equal(tiny.output(model.eval(), tiny.tokens()), before)
    assert_equal_outputs(small, model)
    assert not gated_layers(small)
    assert all(parameter.requires_grad for parameter in small.parameters())

    save(small, tmp_path / "small")
    again = load(tmp_path / "small")
    assert type(again) is type(small)
    assert_same_bits(again, small)
    assert again.state_dict().keys() == small.state_dict().keys()
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_feed_forward_pairs_become_narrow(architecture: str) -> None:
    model = gated_model(architecture)
    small = compact(model)
    for block in adapter_for(model).blocks(model):
        feed = block.feed_forward
        assert feed is not None
        up, down = small.get_submodule(feed.up), small.get_submodule(feed.down)
        assert up.rows is None
        assert down.cols is None
        closed = (
            model.get_submodule(feed.up).rows.closed()
            | model.get_submodule(feed.down).cols.closed()
        )
        if feed.gate is not None:
            closed |= model.get_submodule(feed.gate).rows.closed()
            assert small.get_submodule(feed.gate).rows is None
        assert 0 < up.out_features == down.in_features == int((~closed).sum())


def test_compact_shares_nothing_and_copies_no_gated_weight(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = gated_model(architecture)
    held = {id(layer.weight): name for name, layer in gated_layers(model).items()}
    copied = []
    original = nn.Parameter.__deepcopy__

    def watch(parameter: nn.Parameter, memo: dict[int, object]) -> nn.Parameter:
        copied.append(id(parameter))
        return original(parameter, memo)

    monkeypatch.setattr(nn.Parameter, "__deepcopy__", watch)
    small = compact(model)
    assert copied, "embeddings and norms are copied"
    assert not [held[i] for i in copied if i in held]
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert not [
        n for n, p in small.named_parameters() if p.untyped_storage().data_ptr() in storages
    ]


def test_inplace_gives_the_same_model(architecture: str) -> None:
    model = gated_model(architecture)
    small = compact(model)
    assert compact(model, inplace=True) is model
    assert_same_bits(model, small)


def test_compacting_twice_changes_nothing(architecture: str) -> None:
    small = compact(gated_model(architecture))
    again = compact(small)
    assert again is not small
    state = small.state_dict()
    assert state.keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    assert_same_bits(again, small)


@pytest.mark.sampled
@pytest.mark.parametrize("value", [-5.0, 5.0], ids=["all-closed", "none-closed"])
def test_all_closed_and_none_closed(architecture: str, value: float, tmp_path: Path) -> None:
    model = gated_model(architecture)
    with torch.no_grad():
        for layer in gated_layers(model).values():
            for _, gate in layer.gates():
                gate.latent.fill_(value)
    small = compact(model)
    if architecture in ("gpt2", "t5", "t5-gated"):
        # Conv1D is transposed, and T5's matrices have another memory layout.
        assert_equal_outputs(small, model)
    else:
        assert_same_bits(small, model)  # gates of exactly 0 and 1 cause no rounding
    kept = sum(m.weight.numel() for m in small.modules() if isinstance(m, CompactLinear))
    counted = measure_budget(model)
    assert kept == (0 if value < 0 else counted.gated_weights)
    assert counted.realised_sparsity == (1.0 if value < 0 else 0.0)
    save(small, tmp_path / "small")
    assert_same_bits(load(tmp_path / "small"), small)


@pytest.mark.parametrize("side", ["rows", "cols"])
def test_one_sided_gates(architecture: str, side: str) -> None:
    model = tiny.tiny_model(architecture)
    attach(model, GateConfig(rows=side == "rows", cols=side == "cols"))
    tiny.scatter_gates(model)
    assert_equal_outputs(compact(model), model.eval())


@pytest.mark.sampled
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "laplace", "sigmoid"])
def test_activations(architecture: str, activation: str) -> None:
    model = attach(
        tiny.tiny_model(architecture, **{tiny.activation_key(architecture): activation}),
        GateConfig(preset="reference"),
    )
    tiny.scatter_gates(model)
    assert_equal_outputs(compact(model), model.eval())


def test_lora_inside_gates(architecture: str, tmp_path: Path) -> None:
    model = attach(lora_model(architecture), GateConfig(preset="reference"))
    tiny.scatter_gates(model)
    model.eval()
    counted = measure_budget(model)
    dense = measure_budget(tiny.tiny_model(architecture))
    assert counted.low_rank_parameters > 0
    assert counted.all_parameters == dense.all_parameters
    assert counted.head_parameters == dense.head_parameters
    assert counted.encoder_parameters == dense.encoder_parameters

    small = compact(model)
    assert type(small) is type(unwrap(model))
    assert not [m for m in small.modules() if type(m).__module__.startswith("peft")]
    assert not hasattr(small, "peft_config")
    assert_equal_outputs(small, model)
    save(small, tmp_path / "small")
    assert_same_bits(load(tmp_path / "small"), small)
    assert_same_bits(compact(model, inplace=True), small)


def test_lora_beside_gates(architecture: str) -> None:
    model = lora_model(architecture)
    # In the first block, gate one layer of each part; the other layers have no gates.
    block = adapter_for(model).blocks(model)[0]
    assert block.feed_forward is not None
    attach(model, GateConfig(modules=(block.feed_forward.up, block.attentions[0].v)))
    tiny.scatter_gates(model)
    small = compact(model.eval())
    assert not [m for m in small.modules() if type(m).__module__.startswith("peft")]
    # The bound is defined for gated layers, so wrap the others, without gates, in a copy.
    wrapped = copy.deepcopy(model)
    plain = unwrap(wrapped)
    names = set(adapter_for(plain).gated(plain)) - set(gated_layers(plain))
    assert_equal_outputs(small, attach_fixed(wrapped, dict.fromkeys(names, (None, None))))
    assert_same_bits(compact(model, inplace=True), small)


def test_lora_that_peft_has_merged(architecture: str) -> None:
    model = attach(lora_model(architecture), GateConfig(preset="reference"))
    tiny.scatter_gates(model)
    small = compact(model.eval())
    for layer in gated_layers(model).values():
        layer.base.merge()
    difference = tiny.output(compact(model), tiny.tokens()) - tiny.output(small, tiny.tokens())
    bound = model_bound(model, lambda m: tiny.output(m, tiny.tokens()))
    assert (difference.abs() <= 2 * bound).all()


def test_lora_that_is_switched_off_is_refused(architecture: str) -> None:
    model = attach(lora_model(architecture), GateConfig(preset="reference"))
    with model.disable_adapter(), pytest.raises(ValueError, match="disabled"):
        compact(model)


def test_macs_agree(architecture: str) -> None:
    model = gated_model(architecture, _attn_implementation="eager")
    small = compact(model)
    planned = planned_macs(model, 3, 5)
    assert planned == macs(small, 3, 5)
    dense = macs(model, 3, 5)
    assert dense == macs(tiny.tiny_model(architecture), 3, 5)
    assert planned.linear < dense.linear
    if architecture == "deberta-v2":
        return  # its position scores are more matmuls, not counted in "attention"
    # What torch counts while the layers run, with attention written as plain matmuls. The model
    # reads 3 x 7 tokens, and T5's decoder as many.
    inputs = tiny.tokens(3, 7)
    for counted in (small, tiny.tiny_model(architecture, _attn_implementation="eager")):
        with FlopCounterMode(display=False, depth=None) as counter:
            tiny.output(counted, inputs)
        counts = counter.get_flop_counts()
        name = type(counted).__name__
        blocks = adapter_for(counted).blocks(counted)
        found = sum(sum(counts[f"{name}.{block.path}"].values()) for block in blocks)
        assert found == 2 * macs(counted, 3, 7).total


def test_plan_says_what_goes_and_why(architecture: str) -> None:
    model = gated_model(architecture)
    plan = plan_compaction(model)
    text = str(plan)
    counted = measure_budget(model)
    assert sum(layer.removed_weights for layer in plan.layers.values()) == counted.removed_weights
    for path, layer in plan.layers.items():
        assert f"{path}: {layer.out_features}x{layer.in_features} -> " in text
    assert "closed rows" in text
    assert isinstance(model.get_submodule(next(iter(plan.layers))), GatedLinear)


def test_gates_still_train_after_a_copy_was_compacted(architecture: str) -> None:
    model = gated_model(architecture).train()
    compact(model)
    penalty = SparsityPenalty(model, 0.4, "target")
    assert penalty is not None
    assert any(p.requires_grad for p in model.parameters())
