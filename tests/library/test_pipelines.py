"""Compact models work in the pipelines of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, pipeline

import finegates as fg
from support import tiny

TASKS = {
    "text-classification": ("bert", "classifier"),
    "feature-extraction": ("roberta", "base"),
    "text-generation": ("llama", "language"),
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"[PAD]": 0, "[UNK]": 1, "[SEP]": 2, "a": 3, "charming": 4, "film": 5, "dull": 6}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", model_input_names=inputs
    )


def split(found: Any) -> tuple[list[str], list[float]]:
    """Texts and numbers of nested results, in order."""
    if isinstance(found, dict):
        found = [found[key] for key in sorted(found)]
    if isinstance(found, list):
        parts = [split(each) for each in found]
        return [t for texts, _ in parts for t in texts], [n for _, many in parts for n in many]
    return ([found], []) if isinstance(found, str) else ([], [float(found)])


@pytest.mark.parametrize("task", TASKS)
def test_a_pipeline_gives_the_same_with_the_gated_and_the_compact_model(task: str) -> None:
    architecture, head = TASKS[task]
    model: Any = tiny.tiny_model(architecture, head, dtype=torch.float64).eval()
    fg.attach(model, fg.GateConfig())
    tiny.scatter_gates(model)
    texts = ["a charming film", "dull"]
    options: dict[str, Any] = {}
    if task == "text-generation":
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    gated, small = (
        pipeline(task, model=each, tokenizer=tokenizer(), device="cpu")(texts, **options)
        for each in (model, fg.compact(model))
    )
    (names, numbers), (theirs, others) = (split(found) for found in (gated, small))
    assert names == theirs
    assert numbers == pytest.approx(others, rel=1e-9)
