"""Pretrains a small RoBERTa on masked words and connectives.

Documents of two passages are encoded in the pair format `<s> A </s></s> B </s>` of fine-tuning. A
connective that opens the second passage ("but", "again", ...) is removed and predicted at `<s>`, by
the output layer for masked words. Masked words alone teach a model to compare two passages word by
word, but not to aggregate the result in `<s>`, where classifiers read it. Nie et al. 2019 (DisSent)
train sentence encoders on connectives for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

from finegates.seeds import seed_everything
from finegates.suite.config.tier import Pretraining
from finegates.suite.data.language import CONNECTIVES, SEPARATOR

INITIAL_STD = 0.05
"""Standard deviation of initial weights and embeddings."""

UNLABELLED = -100
"""Label of positions that are not predicted."""


def pretrain(
    corpus: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    settings: Pretraining,
    *,
    seed: int,
    folder: str | Path | None = None,
    progress: bool = False,
) -> RobertaForMaskedLM:
    """Pretrain an encoder on the CPU from random weights.

    Arguments:
        corpus: documents; a tab separates the two passages of a pair.
        tokenizer: encodes them; must have a mask token.
        settings: sizes and training settings; `documents` is not used. The number of threads is set
            for the training and restored afterwards.
        seed: seed of initial weights, order of documents and masks.
        folder: folder to save model and tokenizer to with `save_pretrained`, if any.
        progress: show a progress bar.

    Returns:
        The model in evaluation mode, with `finetuning_dropout` in its configuration.

    Raises:
        ValueError: the corpus is empty.
    """
    if len(corpus) == 0:
        raise ValueError("corpus holds no documents")
    threads_before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        seed_everything(seed)
        model = RobertaForMaskedLM(_configuration(tokenizer, settings))
        set_waves(model.roberta.embeddings.position_embeddings.weight)
        _train(model, EncodedDocuments(corpus, tokenizer, settings.max_length), settings, progress)
    finally:
        torch.set_num_threads(threads_before)
    model.config.hidden_dropout_prob = settings.finetuning_dropout
    model.config.attention_probs_dropout_prob = settings.finetuning_dropout
    model.eval()
    if folder is not None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return model


class EncodedDocuments:
    """Token ids of documents, one per row, and their removed connectives.

    Attributes:
        tokens: ids, padded at the end (documents, longest).
        lengths: lengths of the rows before padding (documents,).
        connectives: ids of the removed words, `UNLABELLED` for documents without one (documents,).
    """

    def __init__(
        self, corpus: Sequence[str], tokenizer: PreTrainedTokenizerFast, max_length: int
    ) -> None:
        self.vocabulary = len(tokenizer)
        self.padding, self.mask = int(tokenizer.pad_token_id), int(tokenizer.mask_token_id)
        self.words_from = 1 + max(tokenizer.all_special_ids)
        parted = [_part(document) for document in corpus]
        rows = [torch.tensor([])] * len(parted)
        for passages in (1, 2):
            numbers = [n for n, (texts, _) in enumerate(parted) if len(texts) == passages]
            if numbers:
                columns = zip(*(parted[n][0] for n in numbers), strict=True)
                encoded = tokenizer(*map(list, columns), truncation=True, max_length=max_length)
                for n, ids in zip(numbers, encoded["input_ids"], strict=True):
                    rows[n] = torch.tensor(ids)
        words = [UNLABELLED if c is None else tokenizer.convert_tokens_to_ids(c) for _, c in parted]
        self.tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.padding)
        self.lengths = torch.tensor([len(row) for row in rows])
        self.connectives = torch.tensor(words)

    def batch(self, settings: Pretraining) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a random batch of documents, with masks.

        Rows are drawn independently of their lengths. With batches of equal length, which need less
        padding, the model took much longer to find the second passage's words in the first.

        Returns:
            Masked tokens, and labels: the word at predicted positions, the connective at `<s>`,
            `UNLABELLED` elsewhere; both (batch_size, longest of the batch).
        """
        drawn = torch.randint(len(self.tokens), (settings.batch_size,))
        words = self.tokens[drawn, : int(self.lengths[drawn].max())]  # (batch, longest)
        connectives = self.connectives[drawn]  # (batch,)
        # Masking would hide whether a word equals the one in the other passage.
        shown = (connectives != UNLABELLED) & (torch.rand(len(drawn)) < settings.shown)
        chance = settings.mask_probability * (~shown).float()  # (batch,)
        chosen = (words >= self.words_from) & (torch.rand(words.shape) < chance[:, None])
        labels = words.where(chosen, UNLABELLED)
        labels[:, 0] = connectives
        # As in BERT: 80 % of the chosen words are masked, 10 % are replaced, 10 % are unchanged.
        fate = torch.rand(words.shape)
        random = torch.randint(self.words_from, self.vocabulary, words.shape)
        tokens = words.where(~(chosen & (fate < 0.9)), random)
        return tokens.where(~(chosen & (fate < 0.8)), self.mask), labels


def _part(document: str) -> tuple[list[str], str | None]:
    """Split a document into passages and the connective of the second, if it has one."""
    passages = document.split(SEPARATOR, 1)
    if len(passages) == 2:
        opening, _, remainder = passages[1].partition(" ")
        if opening in CONNECTIVES:
            return [passages[0], remainder], opening
    return passages, None


@torch.no_grad()
def set_waves(positions: torch.Tensor, base: float = 100.0) -> None:
    """Initialise position embeddings (positions, hidden) as sinusoids.

    Neighbours then have similar embeddings from the first step, so that attention learns to find
    them in hundreds instead of thousands of steps (Vaswani et al. 2017, section 3.5). Their
    standard deviation is that of the other weights. They are trained as usual.
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
        # RoBERTa's 0.02 suits a width of 768. Narrow layers learn to attend sooner with more.
        initializer_range=INITIAL_STD,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _train(
    model: RobertaForMaskedLM, documents: EncodedDocuments, settings: Pretraining, progress: bool
) -> None:
    model.train()
    optimizers = _optimizers(model, settings)
    warmup = max(1, round(settings.warmup * settings.steps))
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(
                (step + 1) / warmup, (settings.steps - step) / max(1, settings.steps - warmup)
            ),
        )
        for optimizer in optimizers
    ]
    bar = tqdm(range(settings.steps), desc="pretraining", disable=not progress)
    for step in bar:
        tokens, labels = documents.batch(settings)
        loss = _loss(model, tokens, labels, documents.padding, settings.connective_weight)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if step % 100 == 0:
            bar.set_postfix(loss=f"{loss.item():.2f}")


def _loss(
    model: RobertaForMaskedLM,
    tokens: torch.Tensor,
    labels: torch.Tensor,
    padding: int,
    connective_weight: float,
) -> torch.Tensor:
    """Weighted mean cross-entropy of the labelled positions."""
    states = model.roberta(tokens, attention_mask=(tokens != padding).long()).last_hidden_state
    asked = labels != UNLABELLED  # (batch, length)
    weights = torch.ones(tokens.shape)
    weights[:, 0] = connective_weight
    losses = nn.functional.cross_entropy(
        model.lm_head(states[asked]), labels[asked], reduction="none"
    )
    # A batch of a tiny corpus may not have any labels.
    return (losses * weights[asked]).sum() / weights[asked].sum().clamp(min=1.0)


def _optimizers(model: RobertaForMaskedLM, settings: Pretraining) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings, biases and norms.

    With Muon the model learns to compare two passages in fewer steps than with AdamW alone.
    """
    matrices = [p for p in model.roberta.encoder.parameters() if p.ndim == 2]
    inside = {id(matrix) for matrix in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.AdamW(others, lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
        # Three Newton-Schulz iterations instead of five: cheaper, and as good here.
        torch.optim.Muon(matrices, lr=settings.matrix_learning_rate, weight_decay=0.0, ns_steps=3),
    ]
