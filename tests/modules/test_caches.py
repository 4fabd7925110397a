"""Compact models with caches that transformers sizes from the dense model's configuration."""

import peft
import pytest
import torch
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig, StaticCache

from finegates.compaction import compact
from finegates.formats.stock import uniform
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.stochastic import StochasticGate
from support.tiny import scatter_gates, tiny_model, tokens

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "bert")
# Only the first query head, or only the last: groups of different sizes.
CLOSED = {"regular": (2,), "irregular": (3,)}


@torch.no_grad()
def pair(architecture, closed=(2,)):
    """A gated model with closed heads, and its compact form."""
    more = {"is_decoder": True} if architecture == "bert" else {}
    model = tiny_model(architecture, "language", dtype=torch.float32, **more)
    if architecture == "bert":
        from transformers import BertLMHeadModel

        plain = BertLMHeadModel(model.config).eval()
        plain.load_state_dict(model.state_dict(), strict=False)
        model = plain
    attach(model, GateConfig(preset="structured", sequence_length=7))
    scatter_gates(model)
    for part in model.finegates_structure:
        heads = getattr(part, "heads", None)
        if isinstance(heads, StochasticGate):
            heads.latent.fill_(1.0)
            heads.latent[[index for index in closed if index < heads.size]] = -1.0
    return model.eval(), compact(model)


def generate(model, **options):
    ids = tokens(2, 7)["input_ids"]
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False,
        eos_token_id=None, pad_token_id=0, **options,
    ).tolist()  # fmt: skip


@pytest.mark.parametrize("closed", CLOSED.values(), ids=CLOSED)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_chunked_prefill_with_a_static_cache_gives_the_tokens_of_the_gated_model(
    architecture, closed
):
    gated, small = pair(architecture, closed)
    options = {"cache_implementation": "static", "prefill_chunk_size": 3}
    assert generate(small, **options) == generate(gated)


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gpt2"])
def test_a_static_cache_made_beforehand_is_used_step_by_step(architecture):
    gated, small = pair(architecture)
    config = small.config
    cache = StaticCache(config=config, max_cache_len=10)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache.early_initialization(2, heads, width, torch.float32, torch.device("cpu"))
    ids = tokens(2, 7)["input_ids"]
    expected = gated(ids).logits
    found = [
        small(ids[:, i : i + 1], past_key_values=cache, use_cache=True).logits for i in range(7)
    ]
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-4, rtol=1e-4)
    assert cache.layers[0].keys.shape[1::2] == (heads, width)


@torch.no_grad()
def test_a_cache_without_storage_takes_the_narrow_sizes():
    _, small = pair("llama")
    cache = DynamicCache(config=small.config)
    small(tokens()["input_ids"], past_key_values=cache, use_cache=True)
    sizes = small.model.layers[0].self_attn.finegates_heads
    assert cache.layers[0].keys.shape[1::2] == (len(sizes.kv_heads), sizes.width)


@torch.no_grad()
def test_a_cache_of_a_smaller_model_is_refused():
    _, small = pair("llama", ())
    cache = DynamicCache(config=small.config)
    for layer in range(2):
        cache.update(torch.zeros(2, 1, 3, 2), torch.zeros(2, 1, 3, 2), layer)
    with pytest.raises(ValueError, match="another model"):
        small(tokens()["input_ids"], past_key_values=cache, use_cache=True)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("attention", ["sdpa", "paged|eager"])
@pytest.mark.parametrize("closed", CLOSED.values(), ids=CLOSED)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_continuous_batching_gives_the_tokens_of_the_gated_model(architecture, closed, attention):
    gated, small = pair(architecture, closed)
    prompts = tokens(2, 7)["input_ids"].tolist()
    small.set_attn_implementation(attention)
    settings = GenerationConfig(
        max_new_tokens=5, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cuda_graph=False
    )
    found = small.generate_batch(
        prompts,
        generation_config=settings,
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=32),
        progress_bar=False,
    )
    expected = [row[7:] for row in generate(gated)]
    assert [result.generated_tokens for result in found.values()] == expected


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_learned_prefix_attends_as_one_of_the_kept_heads(architecture):
    _, small = pair(architecture)
    wrapped = peft.get_peft_model(
        small, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ).eval()
    wrapped.prompt_encoder.default.embedding.weight.normal_()
    ids = tokens(2, 7)["input_ids"]
    found = wrapped(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    prefix = wrapped.get_prompt(2)
    # By hand: the prefix of each layer, cut to its heads, as a cache of those sizes.
    cache = DynamicCache(config=small.config)
    for index, block in enumerate(
        small.model.layers if architecture == "llama" else small.transformer.h
    ):
        sizes = (block.self_attn if architecture == "llama" else block.attn).finegates_heads
        cut = [
            states[:, : len(sizes.kv_heads), :, : sizes.width]
            for states in (prefix.layers[index].keys, prefix.layers[index].values)
        ]
        cache.update(*cut, index)
    mask = torch.ones(2, 10, dtype=torch.int64)
    positions = torch.arange(3, 10)[None] if architecture == "gpt2" else None
    expected = small(
        input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True,
        **({} if positions is None else {"position_ids": positions}),
    ).logits  # fmt: skip
    torch.testing.assert_close(found, expected)


def test_the_stock_model_gives_the_same_tokens():
    gated, small = pair("llama")
    options = {"cache_implementation": "static", "prefill_chunk_size": 3}
    assert generate(uniform(small), **options) == generate(small, **options) == generate(gated)
