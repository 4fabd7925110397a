"""Attention heads of compact models: removed and kept dimensions, with unchanged outputs."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from finegates.adapters import Attention, HeadSizes, adapter_for
from finegates.budget import macs, planned_macs
from finegates.compaction import compact, plan_compaction
from finegates.formats.compact import load, save
from finegates.gates.attachment import attach, attach_fixed
from finegates.gates.config import GateConfig
from finegates.modules.linear import linear_shape
from support import tiny
from support.tolerance import model_bound

ARCHITECTURES = sorted(tiny.ARCHITECTURES)
ROTARY = ("llama", "mistral", "qwen2")
REMOVES_HEADS = [name for name in ARCHITECTURES if not name.startswith("t5")]


class Closing:
    """Constant gates for the attentions of a model, all open at first."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parts = [
            part for block in adapter_for(model).blocks(model) for part in block.attentions
        ]
        self.gates: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        for path in itertools.chain.from_iterable(part.linears() for part in self.parts):
            columns, outputs = linear_shape(model.get_submodule(path))
            self.gates[path] = (torch.ones(outputs), torch.ones(columns))

    def rows(self, part: Attention, name: str) -> torch.Tensor:
        """Row gates of q, k or v, (heads, head_dim), writable."""
        queries, keys = part.heads * part.head_dim, part.kv_heads * part.head_dim
        values, _ = self.gates[getattr(part, name)]
        if part.is_fused:
            start = {"q": 0, "k": queries, "v": queries + keys}[name]
            values = values[start : start + (queries if name == "q" else keys)]
        return values.view(-1, part.head_dim)

    def cols(self, part: Attention) -> torch.Tensor:
        """Column gates of o, (heads, head_dim), writable."""
        return self.gates[part.o][1].view(-1, part.head_dim)

    def at_random(self, seed: int, closed: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        for sides in self.gates.values():
            for side in sides:
                draw = torch.rand(side.shape, generator=generator)
                side.copy_((draw >= closed) * (0.5 + draw / 2))

    def attached(self) -> nn.Module:
        return attach_fixed(self.model, self.gates).eval()  # type: ignore[arg-type]


def assert_equal_outputs(model: nn.Module, small: nn.Module) -> None:
    def some_numbers(m: nn.Module) -> torch.Tensor:
        numbers = tiny.output(m, tiny.tokens()).flatten()
        return numbers[:: max(1, numbers.numel() // 6)]

    bound = model_bound(model, some_numbers)
    assert ((some_numbers(small) - some_numbers(model)).abs() <= bound).all()
    assert float(bound.max()) < 1e-9


def sizes_of(model: nn.Module) -> list[HeadSizes]:
    return list(plan_compaction(model).heads.values())


@pytest.mark.sampled
@pytest.mark.parametrize("closed", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_random_heads_compute_what_the_gated_ones_do(
    architecture: str, closed: float, tmp_path: Path
) -> None:
    closing = Closing(tiny.tiny_model(architecture, seed=1))
    closing.at_random(int(10 * closed), closed)
    model = closing.attached()
    small = compact(model)
    assert_equal_outputs(model, small)
    assert macs(small, 2, 5) == planned_macs(model, 2, 5)
    save(small, tmp_path / "small")
    again = load(tmp_path / "small")
    assert torch.equal(tiny.output(again, tiny.tokens()), tiny.output(small, tiny.tokens()))


@pytest.mark.parametrize("side", ["v", "o"])
@pytest.mark.parametrize("architecture", REMOVES_HEADS)
def test_a_head_whose_values_are_closed_goes_with_its_queries(architecture: str, side: str) -> None:
    closing = Closing(tiny.tiny_model(architecture))
    part = closing.parts[0]
    each = part.heads // part.kv_heads
    if side == "v":
        closing.rows(part, "v")[-1] = 0
    else:
        closing.cols(part)[-each:] = 0
    model = closing.attached()
    (sizes,) = sizes_of(model)
    assert sizes.heads == tuple(range(part.heads - each))
    assert sizes.kv_heads == tuple(range(part.kv_heads - 1))
    small = compact(model)
    assert_equal_outputs(model, small)
    assert macs(small, 1, 7).attention < macs(model, 1, 7).attention


@pytest.mark.parametrize("architecture", ["t5", "t5-gated"])
def test_heads_that_position_scores_count_become_empty_but_stay(architecture: str) -> None:
    closing = Closing(tiny.tiny_model(architecture))
    part = closing.parts[0]
    closing.cols(part)[1] = 0
    model = closing.attached()
    queries = plan_compaction(model).layers[part.q]
    assert queries.kept_out == 2 * part.head_dim
    assert queries.output_width == 3 * part.head_dim
    assert_equal_outputs(model, compact(model))


def test_heads_that_stay_take_their_own_position_scores() -> None:
    closing = Closing(tiny.tiny_model("mpnet"))
    closing.rows(closing.parts[0], "v")[0] = 0
    closing.rows(closing.parts[1], "v")[1] = 0
    model = closing.attached()
    small = compact(model)
    kept = [small.get_submodule(part.path).finegates_kept for part in closing.parts]
    assert [heads.tolist() for heads in kept] == [[1, 2], [0, 2]]
    assert_equal_outputs(model, small)
    kept[0].copy_(torch.tensor([0, 1]))  # the scores of a removed head
    with pytest.raises(AssertionError):
        assert_equal_outputs(model, small)


@pytest.mark.parametrize("side", ["q", "k"])
@pytest.mark.parametrize("architecture", ["bert", "roberta", "deberta-v2", "mpnet", "gpt2", "t5"])
def test_a_closed_score_dimension_goes_on_both_sides(architecture: str, side: str) -> None:
    closing = Closing(tiny.tiny_model(architecture))
    for part in closing.parts:
        closing.rows(part, side)[:, 1] = 0
        closing.cols(part)[:, 2] = 0
    model = closing.attached()
    sizes = sizes_of(model)
    assert [s.width for s in sizes] == [part.head_dim - 1 for part in closing.parts]
    small = compact(model)
    assert_equal_outputs(model, small)
    plan = plan_compaction(model)
    for part in closing.parts:
        layers = {path: plan.layers[path] for path in (part.q, part.k, part.v)}
        kept = sum(layer.kept_out for layer in layers.values())
        assert kept == 3 * part.heads * (part.head_dim - 1)


@pytest.mark.parametrize("architecture", ROTARY)
def test_a_rotated_pair_goes_only_if_both_members_are_closed_on_one_side(architecture: str) -> None:
    half = Closing(tiny.tiny_model(architecture)).parts[0].head_dim // 2

    def widths(close: list[tuple[str, int]]) -> list[int]:
        closing = Closing(tiny.tiny_model(architecture))
        for part in closing.parts:
            closing.rows(part, "v")[:, :2] = 0  # otherwise values keep the width
            for side, dimension in close:
                closing.rows(part, side)[:, dimension] = 0
        model = closing.attached()
        assert_equal_outputs(model, compact(model))
        return [sizes.width for sizes in sizes_of(model)] or [2 * half, 2 * half]

    full = widths([])
    assert widths([("q", 1)]) == full
    assert widths([("q", 1), ("k", 1 + half)]) == full, "the rotation mixes them"
    narrower = [width - 2 for width in full]
    assert widths([("q", 1), ("q", 1 + half)]) == narrower
    assert widths([("k", 1), ("k", 1 + half)]) == narrower


def test_norms_over_queries_and_keys_keep_every_score_dimension() -> None:
    closing = Closing(tiny.tiny_model("qwen3"))
    for part in closing.parts:
        closing.rows(part, "q")[:, ::2] = 0
        closing.rows(part, "k")[:, ::2] = 0
        closing.rows(part, "v")[:, 1:] = 0
    model = closing.attached()
    assert_equal_outputs(model, compact(model))
    assert not [s for s in sizes_of(model) if s.width < s.head_dim]
    plan = plan_compaction(model)
    part = closing.parts[0]
    assert plan.layers[part.v].kept_out == part.kv_heads
    assert plan.layers[part.q].kept_out == part.heads * part.head_dim / 2


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_groups_may_keep_unequal_numbers_of_heads(architecture: str) -> None:
    closing = Closing(tiny.tiny_model(architecture))
    for part in closing.parts:
        closing.cols(part)[1] = 0
    model = closing.attached()
    for sizes in sizes_of(model):
        assert sizes.heads == (0, 2, 3)
        assert sizes.groups == (0, 1, 1)
        assert sizes.repeats is None
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)  # type: ignore[operator]
        small = compact(model)
        found, expected = (tiny.output(m, tiny.tokens()) for m in (small, model))
        assert torch.allclose(found, expected, rtol=0, atol=1e-5), "eager takes softmax in float32"
        if attention == "sdpa":
            assert_equal_outputs(model, small)


@pytest.mark.parametrize("variant", tiny.VARIANTS)
@pytest.mark.parametrize("architecture", ["bert", "mpnet", "llama", "qwen2", "t5"])
def test_projections_with_the_same_kept_inputs_become_one_product(
    architecture: str, variant: str, tmp_path: Path
) -> None:
    closing = Closing(tiny.tiny_model(architecture, variant))
    for part in closing.parts:
        for path in (part.q, part.k, part.v):
            closing.gates[path][1][::3] = 0
        closing.rows(part, "k")[0] = 0
    model = closing.attached()
    assert all(sizes.fused for sizes in sizes_of(model))
    small = compact(model)
    for part in closing.parts:
        assert part.joint == ("kv" if part.cross else "qkv")
        assert small.get_submodule(part.joint_path).cols is not None
    assert_equal_outputs(model, small)
    save(small, tmp_path / "small")
    for again in (compact(small), load(tmp_path / "small")):
        assert torch.equal(tiny.output(again, tiny.tokens()), tiny.output(small, tiny.tokens()))
    assert macs(small, 2, 5) == planned_macs(model, 2, 5)


@pytest.mark.parametrize("closed", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("architecture", [a for a in ARCHITECTURES if tiny.is_causal(a)])
def test_generation_with_a_cache_gives_the_gated_models_tokens(
    architecture: str, closed: float
) -> None:
    closing = Closing(tiny.tiny_model(architecture, "language", seed=2))
    closing.at_random(3, closed)
    model = closing.attached()
    small = compact(model)
    prompt = tiny.tokens(length=4)["input_ids"]
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(prompt, **settings)  # type: ignore[operator]
    assert torch.equal(small.generate(prompt, **settings), expected)  # type: ignore[operator]
    assert torch.equal(small.generate(prompt, use_cache=False, **settings), expected)  # type: ignore


@pytest.mark.parametrize("preset", ["reference", "structured"])
@pytest.mark.parametrize("architecture", ["t5", "t5-gated"])
def test_t5_generates_the_gated_models_tokens(architecture: str, preset: str) -> None:
    model = tiny.tiny_model(architecture, "language", seed=2)
    attach(model, GateConfig(preset=preset))
    tiny.scatter_gates(model)
    small = compact(model)
    calls = dict.fromkeys(("qkv", "kv"), 0)
    for path, module in small.named_modules():
        if (name := path.rpartition(".")[2]) in calls:
            module.register_forward_hook(
                lambda *_, name=name: calls.update({name: calls[name] + 1})
            )
    prompt = tiny.tokens(length=4)["input_ids"]
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = model.generate(prompt, **settings)  # type: ignore[operator]
    assert torch.equal(small.generate(prompt, **settings), expected)  # type: ignore[operator]
    # Two layers: the encoder's once, the decoder's for each token; the cache stores
    # cross-attention.
    shared = preset == "structured"
    assert calls == {"qkv": shared * (2 + 2 * 6), "kv": shared * 2}
    assert torch.equal(small.generate(prompt, use_cache=False, **settings), expected)  # type: ignore


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_stays_bfloat16_and_close(architecture: str) -> None:
    closing = Closing(tiny.tiny_model(architecture, dtype=torch.bfloat16))
    closing.at_random(5, 0.3)
    model = closing.attached()
    small = compact(model)
    assert {p.dtype for p in small.parameters()} == {p.dtype for p in model.parameters()}
    difference = tiny.output(small, tiny.tokens()) - tiny.output(model, tiny.tokens())
    assert float(difference.detach().abs().max()) < 0.1


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("architecture", "mode", "preset"),
    [
        *itertools.product(
            [name for name in ARCHITECTURES if name != "t5-gated"],
            [torch.enable_grad, torch.no_grad],
            ["reference"],
        ),
        ("bert", torch.inference_mode, "reference"),
        ("llama", torch.inference_mode, "structured"),
        ("t5-gated", torch.no_grad, "structured"),
        ("t5-gated", torch.enable_grad, "structured"),
    ],
)
def test_torch_compile_takes_the_layers_without_graph_breaks(
    architecture: str, mode: type, preset: str
) -> None:
    model = attach(tiny.tiny_model(architecture, dtype=torch.float32), GateConfig(preset=preset))
    tiny.scatter_gates(model)
    small = compact(model)
    torch._dynamo.reset()  # models of other tests share the code, and versions are limited
    with mode():  # without gradients, uncompiled layers take other code paths
        expected = tiny.output(small, tiny.tokens())
        for block in adapter_for(small).blocks(small):
            small.get_submodule(block.path).compile(backend="eager", fullgraph=True)
        assert torch.allclose(tiny.output(small, tiny.tokens()), expected)


def test_separate_position_projections_leave_the_heads_alone_and_say_so() -> None:
    model = attach(
        tiny.tiny_model("deberta-v2", share_att_key=False), GateConfig(preset="reference")
    )
    tiny.scatter_gates(model)
    plan = plan_compaction(model.eval())
    assert not plan.heads
    assert "its heads keep their sizes" in str(plan)
    assert_equal_outputs(model, compact(model))


def test_a_planted_wrong_slot_is_noticed() -> None:
    closing = Closing(tiny.tiny_model("llama"))
    for part in closing.parts:
        closing.rows(part, "v")[:, :2] = 0
        closing.rows(part, "q")[:, [1, 4]] = 0  # a pair of heads six wide
    model = closing.attached()
    small = compact(model)
    assert_equal_outputs(model, small)
    layer = small.get_submodule(closing.parts[0].path)
    assert layer.dimensions.tolist() == [[0, 2, 3, 5]]
    layer.dimensions[0, 1] = 1
    with pytest.raises(AssertionError):
        assert_equal_outputs(model, small)


@pytest.mark.parametrize("asked_before", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_weights_are_still_recorded_those_of_kept_heads(
    architecture: str, asked_before: bool
) -> None:
    closing = Closing(tiny.tiny_model(architecture, "base"))
    closing.rows(closing.parts[0], "k")[0] = 0.5  # only the first layer is narrowed
    closing.rows(closing.parts[0], "v")[-1] = 0
    closing.cols(closing.parts[0])[-1] = 0
    model = closing.attached()
    model.set_attn_implementation("eager")  # type: ignore[operator]
    if asked_before:  # transformers has already placed its hooks
        attention_weights(model)
    small = compact(model)
    expected = attention_weights(model)
    found = attention_weights(small)
    assert len(found) == len(expected) > 1
    for part, mine, theirs in zip(closing.parts, found, expected, strict=False):
        sizes = getattr(small.get_submodule(part.path), "finegates_heads", None)
        kept = range(part.heads) if sizes is None else sizes.heads
        alive = [head for head in kept if part is not closing.parts[0] or head < part.heads - 1]
        here = [list(kept).index(head) for head in alive]
        assert torch.allclose(mine[:, here], theirs[:, alive])


def attention_weights(model: nn.Module) -> tuple[torch.Tensor, ...]:
    inputs = tiny.tokens()
    if model.config.model_type == "t5":  # type: ignore[union-attr]
        model, inputs = model.get_encoder(), tiny.tokens()  # type: ignore[operator]
    return tuple(model(**inputs, output_attentions=True).attentions)


@pytest.mark.parametrize("architecture", ["bert", "mpnet", "llama"])
def test_a_narrow_model_can_be_pickled(architecture: str) -> None:
    closing = Closing(tiny.tiny_model(architecture))
    closing.at_random(3, 0.4)
    small = compact(closing.attached())
    again = pickle.loads(pickle.dumps(small))
    assert torch.equal(tiny.output(again, tiny.tokens()), tiny.output(small, tiny.tokens()))
    assert str(again) == str(small)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_indices_lie_where_the_weights_do(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    closing = Closing(tiny.tiny_model("llama"))
    for part in closing.parts:
        closing.rows(part, "q")[:, [1, 4]] = 0  # a pair of heads six wide
        closing.rows(part, "v")[:, :2] = 0
        closing.cols(part)[1] = 0
    small = compact(closing.attached().to(device))
    part = adapter_for(small).blocks(small)[0].attentions[0]
    buffers = dict(small.get_submodule(part.path).named_buffers())
    assert {"groups", "dimensions"} <= buffers.keys()
    assert {buffer.device.type for buffer in small.buffers()} == {device}


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_module_holds_no_empty_place_for_a_buffer_that_is_not_saved(architecture: str) -> None:
    """Accelerate treats every buffer as a tensor if it offloads buffers."""
    small = compact(Closing(tiny.tiny_model(architecture)).attached())
    for path, module in small.named_modules():
        for name in module._non_persistent_buffers_set:
            assert module._buffers[name] is not None, f"{path}.{name}"
