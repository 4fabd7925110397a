"""Example inputs of a model: random tokens in batches of one shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finegates.cli.failures import CommandError


def example_inputs(model: Any, names: list[str], batch: int, length: int) -> dict[str, Tensor]:
    """Random token ids without padding, with the other named inputs.

    Args:
        model: of transformers, with a vocabulary.
        names: the inputs that its tokenizer makes (``model_input_names``).
        batch: sequences.
        length: tokens of each.

    Returns:
        int64 (batch, length) by name, on the CPU. An encoder-decoder model also gets
        ``decoder_input_ids``, unless it classifies; then each sequence ends with the end token.

    Raises:
        CommandError: the model reads something else.
    """
    config = model.config
    size = getattr(config, "vocab_size", None)
    reads = getattr(model, "main_input_name", "input_ids")
    if not isinstance(size, int) or reads != "input_ids":
        what = f"{reads}, not tokens" if reads != "input_ids" else "no tokens"
        raise CommandError(
            f"{type(model).__name__} reads {what}, and this command makes random tokens only; call "
            "the model with inputs of your own in Python, or export it with them: "
            "finegates.export_onnx(model, path, inputs)"
        )
    generator = torch.Generator().manual_seed(0)
    # The first ids are special in most vocabularies: the end of a sequence, its padding.
    first = min(size - 1, 5)
    ids = torch.randint(first, size, (batch, length), generator=generator, device="cpu")
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "token_type_ids" in names:
        inputs["token_type_ids"] = torch.zeros_like(ids)
    if getattr(config, "is_encoder_decoder", False):
        if type(model).__name__.endswith("SequenceClassification"):
            ids[ids == config.eos_token_id] = first
            ids[:, -1] = config.eos_token_id
        else:
            inputs["decoder_input_ids"] = ids.clone()
    return inputs


def input_names(tokenizer: Any | None) -> list[str]:
    """The inputs that a tokenizer makes, or a minimal set without one."""
    return ["input_ids", "attention_mask"] if tokenizer is None else tokenizer.model_input_names
