"""Tiny checkpoints with a tokenizer, and tables of text, for tests of the command line."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from support.tiny import VOCABULARY, tiny_model

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
WORDS = tuple(f"w{number}" for number in range(VOCABULARY - len(SPECIAL)))
GOOD, BAD = WORDS[:10], WORDS[10:20]

# Wide enough that one dimension is much less than one percentage point of the budget.
WIDE = {"hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 4}


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word, and RoBERTa's special tokens."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *WORDS))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


def checkpoint(
    folder: Path, variant: str = "base", architecture: str = "roberta", **sizes: object
) -> Path:
    """A folder in Hugging Face layout with a random model and its tokenizer."""
    model: Any = tiny_model(architecture, variant, dtype=torch.float32, **sizes)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def reviews(count: int = 80, seed: int = 0) -> list[dict[str, str]]:
    """Rows whose label can be read off any of their words."""
    draw = random.Random(seed)
    return [
        {
            "text": " ".join(draw.choices(GOOD if row % 2 else BAD, k=draw.randint(2, 6))),
            "label": "good" if row % 2 else "bad",
        }
        for row in range(count)
    ]


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
