"""Pretrain a small RoBERTa by masked-word prediction, for tiers that cannot fetch a checkpoint.

Discourse markers that open a second passage are sometimes removed and predicted at `<s>` instead,
with the same output layer. This is what BERT's next-sentence prediction is for: `<s>`, from which
classification heads read, learns to gather what relates two passages.

Documents of two passages are encoded in the pair format `<s> A </s></s> B </s>`, the format in
which fine-tuning later shows sentence pairs. Every document is one row; batches gather rows of
like length, so hardly any position is padding. Masks are drawn anew at each visit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
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

from finegates.seeds import seed_everything
from finegates.suggest import nearest
from finegates.tasks.language import MARKER_WORDS, SEPARATOR


@dataclass(frozen=True)
class PretrainingSettings:
    """Sizes of the encoder and settings of its pretraining; keys of the configuration file.

    Expect about 27,000 tokens per second and thread at the default sizes.
    """

    hidden_size: int = 64
    """Width of the residual stream; a multiple of `heads`."""
    layers: int = 4
    heads: int = 4
    intermediate_size: int = 256
    """Width between the two feed-forward products."""
    max_length: int = 64
    """Longest sequence in tokens, special tokens included; longer documents are cut."""
    dropout: float = 0.0
    """Dropout during pretraining. The saved configuration carries `finetuning_dropout` instead."""
    finetuning_dropout: float = 0.1
    steps: int = 4500
    batch_size: int = 64
    learning_rate: float = 2e-3
    """Peak of a linear schedule that starts with `warmup` and ends at zero."""
    warmup: float = 0.06
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = 0.01
    mask_probability: float = 0.2
    """Share of the words to predict; of these 80 % are masked, 10 % replaced, 10 % shown."""
    marker_probability: float = 0.7
    """Share of the visits to a marked document at which its marker is predicted at `<s>`."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of heads ({self.heads})"
            )
        for name in ("steps", "batch_size", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @classmethod
    def from_mapping(cls, settings: Mapping[str, Any]) -> PretrainingSettings:
        """Read settings by name. Raises ValueError for an unknown name, with the nearest known."""
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise ValueError(f"unknown pretraining setting {name!r}{nearest(name, known)}")
        return cls(**settings)


def pretrain_masked_lm(
    corpus: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    settings: PretrainingSettings | Mapping[str, Any],
    *,
    seed: int,
    markers: Collection[str] = MARKER_WORDS,
    threads: int = 1,
    folder: str | Path | None = None,
    progress: bool = True,
) -> RobertaForMaskedLM:
    """Pretrain an encoder on the CPU from random weights.

    Arguments:
        corpus: documents; a tab separates the two passages of a pair.
        tokenizer: encodes them; must have a mask token.
        settings: sizes and training settings.
        seed: decides initial weights, order of documents and masks.
        markers: words that may be moved from the start of a second passage to `<s>`'s target.
        threads: CPU threads for PyTorch; restored afterwards. Sums are ordered by thread, so
            another number may change the last bits of the weights.
        folder: where to write the model and the tokenizer with `save_pretrained`; None: nowhere.
        progress: show a progress bar.

    Returns:
        The model in evaluation mode, with `finetuning_dropout` in its configuration.

    Raises:
        ValueError: empty corpus, unknown or inconsistent settings.
    """
    if not isinstance(settings, PretrainingSettings):
        settings = PretrainingSettings.from_mapping(settings)
    if len(corpus) == 0:
        raise ValueError("corpus holds no documents")
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seed_everything(seed)
        model = RobertaForMaskedLM(_configuration(tokenizer, settings))
        with tempfile.TemporaryDirectory() as scratch:
            documents = EncodedDocuments(corpus, tokenizer, settings.max_length, markers)
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
    """Token ids of documents, one unpadded row each, and the place of their marker."""

    def __init__(
        self,
        corpus: Sequence[str],
        tokenizer: PreTrainedTokenizerFast,
        max_length: int,
        markers: Collection[str] = MARKER_WORDS,
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
        self.marker_ids = frozenset(map(tokenizer.convert_tokens_to_ids, markers))
        self.end = tokenizer.eos_token_id

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        opening = row.index(self.end) + 2  # first word after </s></s>
        marked = opening < len(row) and row[opening] in self.marker_ids
        return {"input_ids": row, "marker_at": opening if marked else 0}


class MarkerCollator:
    """Moves markers to the target of `<s>`, masks words of the other rows; drawn anew each time.

    A passage that was nothing but its marker disappears with it: `<s> A </s>`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, settings: PretrainingSettings) -> None:
        self.mask_words = DataCollatorForLanguageModeling(
            tokenizer, mlm_probability=settings.mask_probability
        )
        self.probability = settings.marker_probability
        self.end = tokenizer.eos_token_id

    def __call__(self, documents: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask`, `labels` (-100: no target), each (rows, length)."""
        moved = (torch.rand(len(documents)) < self.probability).tolist()
        rows: list[dict[str, list[int]]] = []
        targets: dict[int, int] = {}
        for number, document in enumerate(documents):
            row, at = document["input_ids"], document["marker_at"]
            if at and moved[number]:
                targets[number] = row[at]
                rest = row[at + 1 :]
                row = row[: at - 1] if rest == [self.end] else row[:at] + rest
            rows.append({"input_ids": row})
        batch: dict[str, torch.Tensor] = dict(self.mask_words(rows))
        for number, target in targets.items():
            # The relation shows only between whole passages: nothing is masked beside it.
            whole = torch.tensor(rows[number]["input_ids"])
            batch["input_ids"][number, : len(whole)] = whole
            batch["labels"][number] = -100
            batch["labels"][number, 0] = target
        return batch


def _configuration(
    tokenizer: PreTrainedTokenizerFast, settings: PretrainingSettings
) -> RobertaConfig:
    return RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        intermediate_size=settings.intermediate_size,
        # RoBERTa counts positions from the padding id + 1.
        max_position_embeddings=settings.max_length + int(tokenizer.pad_token_id) + 1,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout,
        # RoBERTa's 0.02 is meant for 768 wide; narrow layers need 1 / sqrt(width) to learn copying.
        initializer_range=settings.hidden_size**-0.5,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _trainer(
    model: RobertaForMaskedLM,
    documents: EncodedDocuments,
    tokenizer: PreTrainedTokenizerFast,
    settings: PretrainingSettings,
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
        data_collator=MarkerCollator(tokenizer, settings),
    )
