"""Pretrain a small RoBERTa by masked-word prediction, for tiers that cannot fetch a checkpoint.

Documents of two passages are encoded in the pair format `<s> A </s></s> B </s>`, the format in
which fine-tuning later shows sentence pairs. Every document is one row; batches gather rows of
like length, so hardly any position is padding. Masks are drawn anew at each visit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    Trainer,
    TrainingArguments,
)

from finegates.config import Pretraining
from finegates.seeds import seed_everything
from finegates.tasks.language import SEPARATOR

INITIAL_STD = 0.05
"""Standard deviation of initial weights and embeddings."""


def pretrain_masked_lm(
    corpus: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    settings: Pretraining,
    *,
    seed: int,
    folder: str | Path | None = None,
    progress: bool = True,
) -> RobertaForMaskedLM:
    """Pretrain an encoder on the CPU from random weights.

    Arguments:
        corpus: documents; a tab separates the two passages of a pair.
        tokenizer: encodes them; must have a mask token.
        settings: sizes and training settings; `documents` is not read. The number of threads is
            set while training and restored afterwards.
        seed: decides initial weights, order of documents and masks.
        folder: where to write the model and the tokenizer with `save_pretrained`; None: nowhere.
        progress: show a progress bar.

    Returns:
        The model in evaluation mode, with `finetuning_dropout` in its configuration.

    Raises:
        ValueError: empty corpus.
    """
    if len(corpus) == 0:
        raise ValueError("corpus holds no documents")
    threads_before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        seed_everything(seed)
        model = RobertaForMaskedLM(_configuration(tokenizer, settings))
        set_waves(model.roberta.embeddings.position_embeddings.weight)
        documents = EncodedDocuments(corpus, tokenizer, settings.max_length)
        with tempfile.TemporaryDirectory() as scratch:
            _trainer(model, documents, tokenizer, settings, seed, scratch, progress).train()
    finally:
        torch.set_num_threads(threads_before)
    model.config.hidden_dropout_prob = settings.finetuning_dropout
    model.config.attention_probs_dropout_prob = settings.finetuning_dropout
    model.eval()
    if folder is not None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return model


class EncodedDocuments(Dataset[dict[str, Any]]):
    """Token ids of documents, one unpadded row each; single sentences first, then pairs."""

    def __init__(
        self, corpus: Sequence[str], tokenizer: PreTrainedTokenizerFast, max_length: int
    ) -> None:
        passages = [document.split(SEPARATOR, 1) for document in corpus]
        single = [parts[0] for parts in passages if len(parts) == 1]
        pairs = [parts for parts in passages if len(parts) == 2]
        options: dict[str, Any] = {"truncation": True, "max_length": max_length}
        self.rows: list[list[int]] = []
        if single:
            self.rows += tokenizer(single, **options)["input_ids"]
        if pairs:
            first, second = map(list, zip(*pairs, strict=True))
            self.rows += tokenizer(first, second, **options)["input_ids"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.rows[index]}


@torch.no_grad()
def set_waves(positions: torch.Tensor, base: float = 100.0) -> None:
    """Start position embeddings (positions, hidden) as sine waves, with the deviation of the rest.

    Neighbours are then alike from the first step, so that attention finds them in hundreds of
    steps in place of thousands (Vaswani et al. 2017, section 3.5). They are trained as usual.
    """
    count, hidden = positions.shape
    rates = base ** (-torch.arange(0, hidden, 2) / hidden)  # (ceil(hidden / 2),)
    angles = torch.arange(count)[:, None] * rates  # (positions, ceil(hidden / 2))
    positions[:, 0::2] = INITIAL_STD * 2**0.5 * angles.sin()
    positions[:, 1::2] = INITIAL_STD * 2**0.5 * angles[:, : hidden // 2].cos()


def _configuration(tokenizer: PreTrainedTokenizerFast, settings: Pretraining) -> RobertaConfig:
    return RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=settings.feed_forward,
        # RoBERTa counts positions from the padding id + 1.
        max_position_embeddings=settings.max_length + int(tokenizer.pad_token_id) + 1,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout,
        # RoBERTa's 0.02 suits a width of 768; narrow layers start to attend sooner with more.
        initializer_range=INITIAL_STD,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _trainer(
    model: RobertaForMaskedLM,
    documents: EncodedDocuments,
    tokenizer: PreTrainedTokenizerFast,
    settings: Pretraining,
    seed: int,
    scratch: str,
    progress: bool,
) -> Trainer:
    arguments = TrainingArguments(
        output_dir=scratch,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(settings.warmup * settings.steps),
        weight_decay=settings.weight_decay,
        adam_beta2=0.98,
        train_sampling_strategy="group_by_length",
        dataloader_drop_last=True,
        remove_unused_columns=False,
        logging_steps=max(1, settings.steps // 10),
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=not progress,
        seed=seed,
        data_seed=seed,
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=documents,
        data_collator=DataCollatorForLanguageModeling(
            tokenizer, mlm_probability=settings.mask_probability
        ),
    )
