"""Perplexity on held-out text, and greedy decoding."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from finegates.suite.data.packing import IGNORED, HeldOut

Total = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Prediction:
    """Held-out next-token prediction.

    Attributes:
        loss: mean negative log-likelihood per token, in nats.
        perplexity: exp(loss).
        bits_per_character: total negative log-likelihood in bits per character of the text,
            comparable between tokenizers. Separator tokens between documents are predicted and
            count in it.
        tokens: number of predicted tokens.
        characters: number of characters of the text.
    """

    loss: float
    perplexity: float
    bits_per_character: float
    tokens: int
    characters: int


@torch.no_grad()
def held_out_prediction(
    model: nn.Module,
    text: HeldOut,
    batch_size: int = 16,
    *,
    rank: int = 0,
    ranks: int = 1,
    total: Total | None = None,
    progress: bool = False,
) -> Prediction:
    """Predicts every token of held-out text once, in evaluation mode.

    Args:
        model: causal model; its training mode is restored.
        text: see :class:`HeldOut`.
        batch_size: windows per batch.
        rank: rank of this process, which evaluates every ``ranks``-th batch.
        ranks: number of processes.
        total: sums a tensor over the processes (all-reduce); required for more than one.
        progress: show a progress bar.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    # Accumulate in float64, so that the result does not depend on the batch boundaries.
    nats = torch.zeros((), dtype=torch.float64, device=device)
    starts = range(rank * batch_size, len(text), ranks * batch_size)
    for start in tqdm(starts, desc="held-out text", disable=not progress, leave=False):
        ids = text.inputs[start : start + batch_size].to(device)  # (batch, length)
        labels = text.labels[start : start + batch_size].to(device)  # (batch, length)
        logits = model(input_ids=ids, use_cache=False).logits.float()  # (batch, length, vocabulary)
        nats += functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        ).double()
    if total is not None:
        nats = total(nats)
    model.train(was_training)
    loss = nats.item() / text.tokens
    return Prediction(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),
        bits_per_character=nats.item() / math.log(2) / text.characters,
        tokens=text.tokens,
        characters=text.characters,
    )


@torch.no_grad()
def greedy_tokens(model: nn.Module, prompts: Tensor, new: int) -> Tensor:
    """Decodes greedily after prompts (batch, length), with a key-value cache.

    Returns:
        prompts and ``new`` tokens, (batch, length + new). An end token does not stop decoding.
    """
    was_training = model.training
    model.eval()
    mask = torch.ones_like(prompts)
    generated = model.generate(  # type: ignore[operator]
        prompts,
        attention_mask=mask,
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
    )
    model.train(was_training)
    return generated
