"""Loads causal models and tokenizers, or makes Llamas with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from finegates.files import file_digest
from finegates.seeds import seed_everything
from finegates.suite.config.llama import CausalModel, LlamaSizes, TokenizerSource
from finegates.suite.models.fetch import fetched_folder
from finegates.suite.models.pretrained import load_pretrained
from finegates.suite.models.sources import ModelError, dense_model


def tokenizer_folder(results: str) -> str:
    """The folder of a tokenizer that the workflow trains."""
    return f"{results}/llama/tokenizer"


def load_causal(
    source: CausalModel, results: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal model (float32, evaluation mode) and its tokenizer.

    Raises:
        ModelError: the model does not exist, the network is down, or model and tokenizer do not
            match.
    """
    where = _where(source, results)
    settings: dict[str, Any] = {} if source.revision is None else {"revision": source.revision}
    from_hub = source.hub is not None
    model = load_pretrained(
        AutoModelForCausalLM,
        where,
        source.name,
        from_hub=from_hub,
        dtype=torch.float32,
        **settings,
    )
    tokenizer = load_pretrained(AutoTokenizer, where, source.name, from_hub=from_hub, **settings)
    check_vocabulary(model, tokenizer, source.name)
    return model.eval(), tokenizer


def load_text_tokenizer(source: TokenizerSource, results: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of models trained from random weights.

    Raises:
        ModelError: see :func:`load_causal`.
    """
    where = source.path or source.hub or tokenizer_folder(results)
    settings: dict[str, Any] = {} if source.revision is None else {"revision": source.revision}
    return load_pretrained(
        AutoTokenizer, where, "tokenizer", from_hub=source.hub is not None, **settings
    )


def make_llama(
    sizes: LlamaSizes, tokenizer: PreTrainedTokenizerBase, seed: int
) -> LlamaForCausalLM:
    """A Llama with random weights for a tokenizer's vocabulary."""
    seed_everything(seed)
    config = llama_config(
        sizes,
        len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def llama_config(sizes: LlamaSizes, vocabulary: int, **tokens: Any) -> LlamaConfig:
    """A Llama's configuration. ``tokens`` are ids of special tokens."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads or sizes.heads,
        intermediate_size=sizes.feed_forward,
        max_position_embeddings=sizes.positions,
        tie_word_embeddings=sizes.tied,
        **tokens,
    )


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises ModelError if a tokenizer has ids without an embedding."""
    embeddings: Any = model.get_input_embeddings()
    rows = int(embeddings.weight.shape[0])
    if len(tokenizer) > rows:
        raise ModelError(
            f"model {name!r} has embeddings for {rows} tokens, its tokenizer has {len(tokenizer)}: "
            "they do not belong together; give the tokenizer that the model was trained with"
        )


def check_positions(model: PreTrainedModel, length: int, name: str) -> None:
    """Raises ModelError if sequences are longer than the model's context."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise ModelError(
            f"model {name!r} has {positions} positions, sequences have {length} tokens; lower "
            "training.length of the experiment"
        )


def describe_causal(source: CausalModel, results: str, model: PreTrainedModel) -> dict[str, Any]:
    """The ``model`` entry of a run record."""
    folder = None if source.hub is not None else Path(_where(source, results))
    weights = None if folder is None else folder / "model.safetensors"
    return {
        "name": source.name,
        "source": source.kind,
        "revision": source.revision,
        "sha256": file_digest(weights) if weights is not None and weights.is_file() else None,
        "architecture": model.config.model_type,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _where(source: CausalModel, results: str) -> str:
    if source.dense is not None:
        return dense_model(results, source.dense)
    if source.pypi is not None:
        return fetched_folder(results, source.pypi)
    where = source.path or source.hub
    assert where is not None
    return where
