"""Tiny models for tests: two-layer transformers of every architecture, chains and pairs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MPNetConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    T5Config,
)
from transformers.activations import ACT2FN

from finegates.adapters import Adapter, Block, FeedForward, unwrap
from finegates.gates.gated_linear import gated_layers
from finegates.gates.stochastic import StochasticGate

VOCABULARY = 40
LENGTH = 7
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}

_DECODER = {**_SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}


def _t5(feed_forward: str) -> T5Config:
    return T5Config(
        vocab_size=VOCABULARY,
        d_model=12,
        d_kv=4,
        num_layers=2,
        num_heads=3,
        d_ff=20,
        feed_forward_proj=feed_forward,
        relative_attention_num_buckets=6,
        decoder_start_token_id=0,
        eos_token_id=1,
    )


# Add a new architecture here to include it in the conformance suite.
ARCHITECTURES: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": lambda: BertConfig(**_SIZES),
    "roberta": lambda: RobertaConfig(**_SIZES),
    "deberta-v2": lambda: DebertaV2Config(
        **_SIZES,
        relative_attention=True,
        position_buckets=4,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
    ),
    "mpnet": lambda: MPNetConfig(**_SIZES),
    "t5": lambda: _t5("relu"),
    "t5-gated": lambda: _t5("gated-gelu"),
    "llama": lambda: LlamaConfig(**_DECODER, pad_token_id=0),
    "mistral": lambda: MistralConfig(**_DECODER, pad_token_id=0, sliding_window=4),
    "qwen2": lambda: Qwen2Config(
        **{k: v for k, v in _DECODER.items() if k not in ("head_dim", "hidden_size")},
        hidden_size=16,
        pad_token_id=0,
    ),
    "qwen3": lambda: Qwen3Config(**_DECODER, pad_token_id=0),
    "gpt2": lambda: GPT2Config(
        **{k: v for k, v in _SIZES.items() if k != "intermediate_size"}, n_inner=20, pad_token_id=0
    ),
}
_LANGUAGE = {
    **dict.fromkeys(("bert", "roberta", "deberta-v2", "mpnet"), AutoModelForMaskedLM),
    **dict.fromkeys(("t5", "t5-gated"), AutoModelForSeq2SeqLM),
}
# The output layer of each architecture whose embeddings may be tied to it.
OUTPUT_LAYERS = {
    "bert": "cls.predictions.decoder",
    "roberta": "lm_head.decoder",
    "deberta-v2": "cls.predictions.decoder",
    "mpnet": "lm_head.decoder",
    "llama": "lm_head",
    "qwen3": "lm_head",
    "gpt2": "lm_head",
    "t5": "lm_head",
}
VARIANTS = ("classifier", "language", "base")


def model_type(architecture: str) -> str:
    """The ``config.model_type`` of an entry of ``ARCHITECTURES``."""
    return ARCHITECTURES[architecture]().model_type


def is_causal(architecture: str) -> bool:
    """Whether the language model is decoder-only."""
    return architecture not in _LANGUAGE


def activation_key(architecture: str) -> str:
    """The configuration's name for the feed-forward activation."""
    names = {"gpt2": "activation_function", "t5": "dense_act_fn", "t5-gated": "dense_act_fn"}
    return names.get(architecture, "hidden_act")


def _factory(architecture: str, variant: str) -> type:
    if variant == "language":
        return _LANGUAGE.get(architecture, AutoModelForCausalLM)
    return {"classifier": AutoModelForSequenceClassification, "base": AutoModel}[variant]


def tiny_model(
    architecture: str,
    variant: str = "classifier",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **overrides: object,
) -> nn.Module:
    """A random model in evaluation mode, with weights large enough that every layer matters."""
    config = ARCHITECTURES[architecture]()
    for key, value in overrides.items():
        setattr(config, key, value)
    model: nn.Module = _factory(architecture, variant).from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model.to(dtype).eval()


def tokens(batch: int = 2, length: int = LENGTH, seed: int = 0) -> dict[str, Tensor]:
    """Input ids, and a mask whose last row ends early."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[-1, length - 2 :] = 0
    ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    return {"input_ids": ids, "attention_mask": mask}


def output(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Logits, or the last hidden state of a model without a head."""
    if unwrap(model).config.model_type == "t5":
        ids = inputs["input_ids"].clone()
        ids[:, -3] = 1  # a classifier reads the only end-of-sequence token
        ids[:, -2:] = 0
        inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        if not type(unwrap(model)).__name__.endswith("SequenceClassification"):
            inputs["decoder_input_ids"] = ids.flip(0)
    result = model(**inputs)
    found: Tensor = result.logits if hasattr(result, "logits") else result.last_hidden_state
    return found


@torch.no_grad()
def scatter_gates(model: nn.Module, seed: int = 0, mean: float = 0.0) -> None:
    """Moves every stochastic gate away from its initial value.

    About a third are closed and the rest are between 0 and 1; a negative mean closes more.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, StochasticGate):
            module.latent.normal_(mean, 1.0, generator=generator)
            if module.scale is not None:
                module.scale.uniform_(0.8, 1.5, generator=generator)


class Pair(nn.Module):
    """``down(phi(up(x)))``, or ``down(phi(gate(x)) * up(x))``."""

    def __init__(
        self, up: nn.Module, down: nn.Module, activation: str, gate: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.up, self.gate, self.down = up, gate, down
        self.activation = ACT2FN[activation]

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))


class PairAdapter(Adapter):
    """Describes a :class:`Pair` for compaction."""

    def __init__(self, activation: str, gated: bool = False) -> None:
        self.feed_forward = FeedForward("up", "down", "gate" if gated else None, activation)

    def blocks(self, model: nn.Module) -> tuple[Block, ...]:
        return (Block("", (), self.feed_forward),)

    def encoder(self, model: nn.Module) -> tuple[str, ...]:
        return ("up",)


def set_latents(model: nn.Module, value: float) -> None:
    """Sets the latents of all gates of gated layers to one value."""
    for layer in gated_layers(model).values():
        for _, gate in layer.gates():
            gate.latent.data.fill_(value)
