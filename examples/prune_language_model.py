"""Prune a causal language model on plain text and let both models go on with a sentence.

    python examples/prune_language_model.py --text ../shared/data/text/tinystories

Model: a name on the hub or a folder with weights and tokenizer. Text: a folder with train and
validation as .parquet (column "text") or .txt. Where the default folders are missing, a tiny Llama
and its tokenizer are made, with random weights, for a generated language: it shows the steps, and
its numbers say nothing. About 5 minutes on two CPU cores with the defaults.
"""

from __future__ import annotations

import argparse
import logging
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    TrainingArguments,
    default_data_collator,
)

import finegates as fg
from finegates.suite.data.language import generate_corpus
from finegates.suite.data.text import read_documents, text_file
from finegates.suite.data.tokenizer import train_tokenizer


def options() -> argparse.Namespace:
    """What the command line says."""
    shared = Path("../shared/data")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=str(shared / "checkpoints" / "stories260K"))
    parser.add_argument("--text", type=Path, default=shared / "text" / "tinystories", help="folder")
    parser.add_argument("--target", type=float, default=0.3, help="share of the MACs that goes")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--documents", type=int, default=5000, help="of the training text")
    parser.add_argument("--held-out", type=int, default=32, help="sequences to measure on")
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("small-language-model"))
    return parser.parse_args()


def read_text(given: argparse.Namespace) -> dict[str, list[str]]:
    """Documents by split: real ones where the folder has them, else generated."""
    paths = {split: text_file(given.text, split) for split in ("train", "validation")}
    if all(path.is_file() for path in paths.values()):
        return {split: read_documents(path, limit=given.documents) for split, path in paths.items()}
    print(f"{given.text} has no text: documents are of a generated language")
    count = min(given.documents, 2000)
    return {
        split: generate_corpus(count, seed)
        for split, seed in (("train", given.seed), ("validation", given.seed + 1))
    }


def read_model(given: argparse.Namespace, documents: list[str]) -> tuple[Any, Any]:
    """The model and its tokenizer; a tiny random Llama where the default folder is missing."""
    if Path(given.model).is_dir() or not given.model.startswith(".."):
        return (
            AutoModelForCausalLM.from_pretrained(given.model),
            AutoTokenizer.from_pretrained(given.model),
        )
    print(f"{given.model} does not exist: a tiny Llama with random weights is pruned")
    tokenizer = train_tokenizer(documents, vocabulary=200)
    torch.manual_seed(given.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    return LlamaForCausalLM(config), tokenizer


def packed(documents: list[str], tokenizer: Any, length: int) -> list[dict[str, list[int]]]:
    """Sequences of one length, without padding; labels are the tokens themselves."""
    ids = [token for text in documents for token in tokenizer(text)["input_ids"]]
    rows = [ids[at : at + length] for at in range(0, len(ids) - length + 1, length)]
    if not rows:
        raise SystemExit(f"the text has {len(ids)} tokens, fewer than --length {length}")
    return [{"input_ids": row, "labels": row} for row in rows]


@torch.no_grad()
def perplexity(model: torch.nn.Module, rows: list[dict[str, list[int]]]) -> float:
    """exp of the mean loss of a token on held-out sequences."""
    model.eval()
    losses = [
        model(input_ids=ids, labels=ids).loss.item()
        for ids in (torch.tensor([row["input_ids"]]) for row in rows)
    ]
    return math.exp(sum(losses) / len(losses))


def main() -> None:
    """Reads, prunes, compacts, compares, saves."""
    given = options()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("finegates").setLevel(logging.INFO)  # attach, train and compact say one line

    text = read_text(given)
    model, tokenizer = read_model(given, text["train"])
    rows = packed(text["train"], tokenizer, given.length)
    held_out = packed(text["validation"], tokenizer, given.length)[: given.held_out]
    before = perplexity(model, held_out)

    gates = fg.GateConfig(
        preset="structured",
        target=given.target,
        train_head=False,  # output layer and embeddings stay as they are
        sequence_length=given.length,
        seed=given.seed,
    )
    fg.attach(model, gates)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=given.steps,
            per_device_train_batch_size=8,
            learning_rate=1e-2,
            lr_scheduler_type="linear",
            logging_steps=max(1, given.steps // 8),
            save_strategy="no",
            report_to="none",
            seed=given.seed,
        )
        trainer = fg.GateTrainer(
            model, arguments, train_dataset=rows, data_collator=default_data_collator
        )
        trainer.train()
    gated = perplexity(model, held_out)
    plan = fg.plan_compaction(model)
    small = fg.compact(model)
    fg.save(small, given.out)
    tokenizer.save_pretrained(given.out)

    print(f"perplexity on held-out text: {before:.2f} dense, {gated:.2f} with gates,", end=" ")
    print(f"{perplexity(small, held_out):.2f} compact")
    print(plan.summary())
    prompt = tokenizer(given.prompt, return_tensors="pt")["input_ids"]
    written = small.generate(prompt, max_new_tokens=30, do_sample=False)
    print(f"the compact model goes on: {tokenizer.decode(written[0], skip_special_tokens=True)}")
    print(f'saved; finegates.load("{given.out}") reads it without the original weights')


if __name__ == "__main__":
    main()
