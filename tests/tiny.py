"""Tiny models for tests: two-layer transformers of every architecture, chains and pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    PretrainedConfig,
    RobertaConfig,
)
from transformers.activations import ACT2FN

from finegates.adapters import Adapter, Block, FeedForward
from finegates.gates import StochasticGate

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

# A new architecture enters the conformance suite here.
ARCHITECTURES: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": lambda: BertConfig(**_SIZES),
    "roberta": lambda: RobertaConfig(**_SIZES),
}
VARIANTS = {
    "classifier": AutoModelForSequenceClassification,
    "masked": AutoModelForMaskedLM,
    "base": AutoModel,
}


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
    model: nn.Module = VARIANTS[variant].from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model.to(dtype).eval()


def tokens(batch: int = 2, length: int = LENGTH, seed: int = 0) -> dict[str, Tensor]:
    """Input ids and a mask whose last row ends early."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[-1, length - 2 :] = 0
    ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    return {"input_ids": ids, "attention_mask": mask}


def output(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Logits, or the last hidden state of a model without a head."""
    result = model(**inputs)
    found: Tensor = result.logits if hasattr(result, "logits") else result.last_hidden_state
    return found


@torch.no_grad()
def scatter_gates(model: nn.Module, seed: int = 0) -> None:
    """Moves every stochastic gate away from its start: about a third closed, the rest between."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, StochasticGate):
            module.latent.normal_(0.0, 1.0, generator=generator)


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
    """Describes a :class:`Pair` to compaction."""

    model_types: ClassVar[tuple[str, ...]] = ()

    def __init__(self, activation: str, gated: bool = False) -> None:
        self.feed_forward = FeedForward("up", "down", "gate" if gated else None, activation)

    def blocks(self, model: nn.Module) -> tuple[Block, ...]:
        return (Block("", None, self.feed_forward),)

    def encoder(self, model: nn.Module) -> str:
        return "up"
