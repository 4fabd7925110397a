"""Trains a word-level tokenizer in RoBERTa's format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""In RoBERTa's order of numbers, so that its default configuration's ids (0, 1, 2) are right."""


def train_tokenizer(
    texts: Iterable[str], *, vocabulary: int = 1000, max_length: int = 64
) -> PreTrainedTokenizerFast:
    """Train a tokenizer of lower-case words and punctuation marks.

    A single text becomes `<s> A </s>`, a pair `<s> A </s></s> B </s>`, as RoBERTa has it. Words
    outside the vocabulary become `<unk>`. There are no token type ids.

    Arguments:
        texts: training text, one string per document; tabs count as spaces.
        vocabulary: maximum number of tokens, including special ones; the most frequent words are
            kept.
        max_length: number of tokens to which `truncation=True` truncates.

    Returns:
        A fast tokenizer of the transformers library.

    Raises:
        ValueError: `vocabulary` does not have room for a word in addition to the special tokens.
    """
    if vocabulary <= len(SPECIAL_TOKENS):
        raise ValueError(
            f"vocabulary must exceed the {len(SPECIAL_TOKENS)} special tokens, got {vocabulary}"
        )
    start, padding, end, unknown, mask = SPECIAL_TOKENS
    tokenizer = Tokenizer(models.WordLevel(unk_token=unknown))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        texts,
        trainers.WordLevelTrainer(
            vocab_size=vocabulary, special_tokens=list(SPECIAL_TOKENS), show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} {end} $B {end}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        cls_token=start,
        pad_token=padding,
        eos_token=end,
        sep_token=end,
        unk_token=unknown,
        mask_token=mask,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> Path:
    """Save a tokenizer for `AutoTokenizer` and return the folder.

    The folder is created if needed. Files with the same names are replaced.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    return folder
