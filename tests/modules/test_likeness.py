"""An attention is narrowed only if its class computes the same as the narrow module."""

from types import MethodType

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel
from transformers.models.bert.modeling_bert import BertAttention, BertLayer, BertSelfAttention
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from finegates.adapters import (
    AttentionSpec,
    DescribedAdapter,
    FeedForwardSpec,
    HeadSizes,
    RotarySpec,
)
from finegates.compaction import compact, plan_compaction
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.modules.attention import RotaryAttention
from finegates.modules.likeness import unlikeness
from support.described import (
    described_inputs,
    described_model,
    described_outputs,
    relative_difference,
)
from support.tiny import scatter_gates

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 20,
    "max_position_embeddings": 32, "pad_token_id": 0,
}  # fmt: skip
# Features of each type that a plain rotary attention would leave out.
OTHERS = {
    "gemma2": ({"attn_logit_softcapping": 2.0}, "attn_logit_softcapping"),
    "gpt_oss": ({"num_local_experts": 2, "num_experts_per_tok": 1}, "sinks"),
    "cohere": ({"use_qk_norm": True}, "use_qk_norm"),
    "olmo": ({"clip_qkv": 0.1}, "clip_qkv"),
    "smollm3": ({"no_rope_layers": [0, 1]}, "use_rope"),
    "stablelm": ({"partial_rotary_factor": 0.5}, "rotary_ndims"),
    "phi3": ({}, "qkv_proj"),
    "olmo2": ({}, None),
    "glm": ({}, None),
    "helium": ({}, None),
    "llama": ({}, ""),
    "mistral": ({"sliding_window": 4}, ""),
    "qwen2": ({}, ""),
    "qwen3": ({}, ""),
    "granite": ({"attention_multiplier": 0.7}, ""),
    "gemma": ({}, ""),
    "ministral": ({}, ""),
}  # fmt: skip


def base_model(model_type, **more):
    config = CONFIG_MAPPING[model_type](**SIZES, **more)
    config._attn_implementation = "eager"
    model = AutoModel.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5)
    return model


def attention_of(model):
    return next(m for n, m in model.named_modules() if n.endswith("layers.0.self_attn"))


def whole(module):
    """Sizes that keep every head."""
    return HeadSizes((0, 1, 2, 3), (0, 0, 1, 1), (0, 1), head_dim=4, width=4)


@torch.no_grad()
@pytest.mark.parametrize("model_type", OTHERS)
def test_a_rotary_attention_equals_the_module_or_refuses_it_by_name(model_type):
    more, attribute = OTHERS[model_type]
    model = base_model(model_type, **more)
    module = attention_of(model)
    if attribute == "":
        ids = torch.randint(3, 40, (2, 9))
        expected = model(ids).last_hidden_state
        narrow = RotaryAttention(module, whole(module))
        model.layers[0].self_attn = narrow
        assert torch.equal(model(ids).last_hidden_state, expected)
        return
    with pytest.raises(ValueError, match=f"{type(module).__name__}.*{attribute or 'is not that'}"):
        RotaryAttention(module, whole(module))


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["smollm3", "olmo", "cohere", "granite", "qwen3"])
def test_a_spec_given_for_a_look_alike_stays_exact_and_says_what_keeps_its_size(model_type):
    more, attribute = OTHERS[model_type]
    model = base_model(model_type, **more)
    kind = type(attention_of(model)).__name__
    given = DescribedAdapter(
        AttentionSpec((f"{model_type}.{kind}",), rotary=RotarySpec(), executor="rotary")
    )
    layers = tuple(
        f"layers.{index}.{name}"
        for index in range(2)
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                     "self_attn.o_proj", "mlp.up_proj", "mlp.gate_proj", "mlp.down_proj")
    )  # fmt: skip
    attach(model, GateConfig(preset="reference", modules=layers))
    scatter_gates(model)
    model.eval()
    ids = torch.randint(3, 40, (2, 9))
    expected = model(ids).last_hidden_state
    plan = plan_compaction(model, given)
    kept = [note for note in plan.notes if "self_attn: its heads keep their sizes" in note]
    # qwen3 has norms that the spec does not mention.
    refused = attribute != "" or model_type == "qwen3"
    assert len(kept) == 2 * refused
    assert all(str(attribute or "does not normalise") in note for note in kept)
    small = compact(model, adapter=given)
    torch.testing.assert_close(small(ids).last_hidden_state, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_the_spec_of_t5_given_for_umt5_is_exact(feed_forward):
    gated = feed_forward != "relu"
    given = DescribedAdapter(
        AttentionSpec(
            ("umt5.UMT5Attention",),
            q="q", k="k", v="v", o="o", width="key_value_proj_dim",
            sizes={"inner_dim": "heads*width"}, fixed_heads=True,
            cross=lambda module, name: name == "EncDecAttention", joint=True,
        ),
        FeedForwardSpec(
            ("umt5.UMT5DenseGatedActDense" if gated else "umt5.UMT5DenseActDense",),
            up="wi_1" if gated else "wi", gate="wi_0" if gated else None, down="wo", phi="act",
            joint=gated,
        ),
    )  # fmt: skip
    config = CONFIG_MAPPING["umt5"](
        vocab_size=40, d_model=12, d_kv=4, num_layers=2, num_heads=3, d_ff=20,
        feed_forward_proj=feed_forward, decoder_start_token_id=0,
    )  # fmt: skip
    model = AutoModel.from_config(config).double().eval()
    attach(
        model, GateConfig(preset="reference", modules=("*.q", "*.k", "*.v", "*.o", "*.wi*", "*.wo"))
    )
    scatter_gates(model)
    model.eval()
    ids = torch.randint(3, 40, (2, 7))
    expected = model(input_ids=ids, decoder_input_ids=ids).last_hidden_state
    small = compact(model, adapter=given)
    assert any(hasattr(module, "finegates_heads") for module in small.modules())
    found = small(input_ids=ids, decoder_input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_subclass_with_a_forward_of_its_own_is_another_attention():
    class Mine(LlamaAttention):
        def forward(self, hidden_states, **kwargs):
            return super().forward(2 * hidden_states, **kwargs)

    class Same(LlamaAttention):
        pass

    module = attention_of(base_model("llama"))
    module.__class__ = Same
    assert unlikeness(module, RotaryAttention.classes) is None
    module.__class__ = Mine
    assert "Mine" in unlikeness(module, RotaryAttention.classes)
    module.__class__ = LlamaAttention
    module.forward = lambda *args: None
    assert "has been replaced" in unlikeness(module, RotaryAttention.classes)


class _Mixing(GPTNeoSelfAttention):
    """Overrides a method that forward calls."""

    def _attn(self, *args, **kwargs):
        outputs, weights = super()._attn(*args, **kwargs)
        return outputs - 0.5 * outputs.mean(1, keepdim=True), weights


class _Normed(BertAttention):
    """Normalises between attention and output projection."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        context, weights = self.self(hidden_states, attention_mask=attention_mask)
        context = torch.nn.functional.rms_norm(context, context.shape[-1:])
        return self.output(context, hidden_states), weights


class _Same(BertLayer):
    """Changes nothing."""


class _SameAttention(BertSelfAttention):
    """Changes nothing."""


@torch.no_grad()
@pytest.mark.parametrize("preset", ["structured", "reference"])
@pytest.mark.parametrize(
    ("name", "of", "kind", "keeps"),
    [
        ("gpt_neo", GPTNeoSelfAttention, _Mixing, True),
        ("bert", BertAttention, _Normed, True),
        ("bert", BertLayer, _Same, False),
        ("bert", BertSelfAttention, _SameAttention, False),
    ],
)
def test_what_a_subclass_changes_around_or_below_forward_counts(name, of, kind, keeps, preset):
    model = described_model(name)
    for module in model.modules():
        if type(module) is of:
            module.__class__ = kind
    inputs = described_inputs(name)
    attach(model, GateConfig(preset=preset, sequence_length=9 if preset == "structured" else 128))
    scatter_gates(model)
    expected = described_outputs(model.eval(), inputs)
    plan = plan_compaction(model)
    assert any("heads keep their sizes" in note for note in plan.notes) == keeps
    assert not any("keep their width" in note for note in plan.notes)
    assert relative_difference(expected, described_outputs(compact(model), inputs)) < 1e-11


@torch.no_grad()
def test_a_subclass_keeps_its_heads_and_width_and_the_plan_says_so():
    class Mine(LlamaAttention):
        def forward(self, hidden_states, **kwargs):
            return super().forward(2 * hidden_states, **kwargs)

    class Clipped(LlamaMLP):
        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x)).clamp(max=1) * self.up_proj(x))

    model = base_model("llama")
    model.layers[0].self_attn.__class__ = Mine
    model.layers[0].mlp.__class__ = Clipped
    replaced = model.layers[1].self_attn

    def forward(self, *args, **kwargs):
        return LlamaAttention.forward(self, *args, **kwargs)

    replaced.forward = MethodType(forward, replaced)
    attach(model, GateConfig(preset="reference"))
    scatter_gates(model)
    model.eval()
    ids = torch.randint(3, 40, (2, 9))
    expected = model(ids).last_hidden_state
    notes = "; ".join(plan_compaction(model).notes)
    assert "layers.0.self_attn: its heads keep their sizes: the forward of Mine is not" in notes
    assert "layers.1.self_attn: its heads keep their sizes: the forward of this Llama" in notes
    assert "layers.0.mlp.down_proj: they keep their width" in notes
    assert "layers.1.mlp" not in notes
    small = compact(model)
    torch.testing.assert_close(small(ids).last_hidden_state, expected, rtol=1e-9, atol=1e-9)
