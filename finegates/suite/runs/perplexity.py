"""How well a causal model predicts held-out text, and whether two models agree on it."""

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
        loss: mean negative log likelihood of a token, nats.
        perplexity: its exponential.
        bits_per_character: all nats over the characters of the text, in bits: comparable between
            tokenizers. Marks between documents are predicted too and count in the nats.
        tokens: predicted.
        characters: of the text.
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
        model: causal; its mode is restored.
        text: see :class:`HeldOut`.
        batch_size: windows at once.
        rank: of this process, which takes every ``ranks``-th batch.
        ranks: processes that share the work.
        total: sums a tensor over the processes; needed for more than one.
        progress: show a progress bar.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    # Sums of many numbers of like size: in float64, so that batches can be cut anywhere.
    nats = torch.zeros((), dtype=torch.float64, device=device)
    starts = range(rank * batch_size, len(text), ranks * batch_size)
    for start in tqdm(starts, desc="held-out text", disable=not progress, leave=False):
        ids = text.inputs[start : start + batch_size].to(device)
        labels = text.labels[start : start + batch_size].to(device)
        logits = model(input_ids=ids, use_cache=False).logits.float()
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
    """What greedy decoding with a key-value cache appends to prompts (batch, length).

    Returns:
        prompt and ``new`` tokens, (batch, length + new); the end of a text does not stop it.
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
