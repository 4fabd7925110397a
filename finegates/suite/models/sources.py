"""Loads a tier's model, tokenizer and tables from their sources."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finegates.files import file_digest
from finegates.suite.config.tasks import DataError, task_named
from finegates.suite.config.tier import Tier
from finegates.suite.data.glue import describe_split, read_hub_split, read_split, split_path
from finegates.suite.models.fetch import fetched_folder
from finegates.suite.models.pretrained import ModelError as ModelError
from finegates.suite.models.pretrained import load_pretrained

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def data_folder(tier: Tier) -> str | None:
    """The folder with the tier's tables, None if they come from the hub."""
    if tier.data.generated is not None:
        return f"{tier.results}/data"
    return tier.data.path


def model_folder(tier: Tier) -> str | None:
    """The folder of the tier's encoder and tokenizer, None for the hub.

    Raises:
        ModelError: the package or folder does not exist.
    """
    source = tier.model
    if source.pretraining is not None:
        return f"{tier.results}/models/encoder"
    if source.dense is not None:
        return dense_model(tier.results, source.dense)
    if source.pypi is not None:
        return fetched_folder(tier.results, source.pypi)
    if source.hub is not None:
        return None
    if source.package is not None:
        package, _, inside = source.package.partition("/")
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise ModelError(
                f"model {source.name!r}: package {package!r} is not installed; install it with "
                "pip install '.[local]'"
            )
        folder = Path(found.origin).parent / inside
    else:
        folder = Path(str(source.path))
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model {source.name!r}: {folder} holds no config.json{_starts(folder)}; set "
            "model.path of the configuration to a folder in Hugging Face layout"
        )
    return str(folder)


def data_files(tier: Tier) -> list[Path]:
    """The Parquet files that the tier reads, empty for the hub.

    Raises:
        DataError: a folder of the user lacks one of them.
    """
    folder = data_folder(tier)
    if folder is None:
        return []
    files = [split_path(folder, task, split) for task in tier.tasks for split in SPLITS]
    if tier.data.generated is None:
        missing = [str(file) for file in files if not file.is_file()]
        if missing:
            raise DataError(
                f"data {tier.data.name!r}: missing {', '.join(missing[:3])}"
                f"{' and more' if len(missing) > 3 else ''}{_starts(folder)}; set data.path of the "
                "configuration to a folder with <task>/<split>.parquet, or shorten tasks"
            )
    return files


def _starts(folder: str | Path) -> str:
    """For messages, the folder that a relative path starts from."""
    return "" if Path(folder).is_absolute() else f" (relative to {Path.cwd()})"


SPLITS = ("train", "validation")


def dense_model(results: str, size: str) -> str:
    """The folder with model and tokenizer of a Llama's dense pretraining run."""
    return f"{results}/llama/models/{size}/dense"


def read_table(tier: Tier, task: str, split: str) -> pa.Table:
    """Reads and checks the rows of a split that the tier uses.

    Raises:
        DataError: ``held_out`` leaves no rows to train on, or see ``finegates.suite.data.glue``.
    """
    source = tier.data
    rows = source.train_rows if split == "train" else source.validation_rows
    if source.held_out is None:
        return _read(tier, task, split, rows)
    table = _read(tier, task, "train", None)
    cut = table.num_rows - source.held_out
    if cut < 1:
        raise DataError(
            f"data.held_out: {source.held_out} rows leave none of the {table.num_rows} training "
            f"rows of task {task!r}; lower it"
        )
    return (table.slice(0, cut) if split == "train" else table.slice(cut)).slice(0, rows)


def _read(tier: Tier, task: str, split: str, rows: int | None) -> pa.Table:
    source = tier.data
    folder = data_folder(tier)
    if folder is not None:
        return read_split(folder, task, split, rows)
    assert source.hub is not None
    assert source.revision is not None
    return read_hub_split(source.hub, source.revision, task, split, rows)


def describe_data(tier: Tier, task: str, rows: dict[str, int]) -> dict[str, Any]:
    """The ``data`` entry of a run record. ``rows`` counts rows by split."""
    source = tier.data
    folder = data_folder(tier)
    splits = {}
    for split in SPLITS if source.held_out is None else ("train",):
        described = (
            {"sha256": None, "status": "hub"}
            if folder is None
            else describe_split(folder, task, split)
        )
        splits[split] = described
    if source.held_out is not None:
        # Captions print the status, so that held-out rows are not taken for the reported split.
        splits["validation"] = {**splits["train"], "status": "held out of the training rows"}
    return {
        "name": source.name,
        "source": source.kind,
        "revision": source.revision,
        "train_rows": rows["train"],
        "validation_rows": rows["validation"],
        "official_train_rows": task_named(task).train_rows,
        "validation_split": task_named(task).validation if source.held_out is None else "held out",
        "splits": splits,
    }


def describe_model(tier: Tier, model: PreTrainedModel) -> dict[str, Any]:
    """The ``model`` entry of a run record."""
    folder = model_folder(tier)
    weights = None if folder is None else Path(folder) / "model.safetensors"
    return {
        "name": tier.model.name,
        "source": tier.model.kind,
        "revision": tier.model.revision,
        "sha256": file_digest(weights) if weights is not None and weights.is_file() else None,
        "architecture": model.config.model_type,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def load_tokenizer(tier: Tier) -> PreTrainedTokenizerBase:
    """Loads the tokenizer. Raises ModelError as :func:`load_classifier`."""
    from transformers import AutoTokenizer

    tokenizer = _from_source(tier, AutoTokenizer)
    choose_padding(tokenizer)
    return tokenizer


def choose_padding(tokenizer: PreTrainedTokenizerBase) -> int:
    """Sets a tokenizer's padding token if it is missing, and returns its id.

    Llama's tokenizers do not have one. A causal classifier reads its label at the last token that
    is not padding, so texts must not end in the padding token. It is a token reserved for padding,
    or else the unknown token, or else BOS, but never EOS.

    Raises:
        ModelError: the tokenizer does not have any of these.
    """
    if tokenizer.pad_token is None:
        vocabulary = tokenizer.get_vocab()
        reserved = (t for t in ("<|finetune_right_pad_id|>", "<pad>", "[PAD]") if t in vocabulary)
        chosen = next(reserved, None) or tokenizer.unk_token or tokenizer.bos_token
        if chosen is None:
            raise ModelError("the tokenizer has no token that could pad; add one to it")
        tokenizer.pad_token = chosen
    return int(tokenizer.pad_token_id)


def load_classifier(tier: Tier, task: str, seed: int, init: str = "pretrained") -> PreTrainedModel:
    """Loads the tier's encoder in float32, with a new head for a task.

    Args:
        tier: configuration.
        task: GLUE task, which sets the size of the head; regression for STS-B.
        seed: seed of the head, and of all weights if ``init`` is ``"random"``.
        init: ``"pretrained"`` or ``"random"`` weights of the encoder.

    Raises:
        ModelError: the model does not exist, the network is down, or the architecture does not have
            a sequence classifier.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    spec = task_named(task)
    settings: dict[str, Any] = {"num_labels": spec.num_labels}
    settings["problem_type"] = (
        "regression" if spec.labels is None else "single_label_classification"
    )
    torch.manual_seed(seed)
    if init == "random":
        config = _from_source(tier, AutoConfig, **settings)
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        model = _from_source(
            tier, AutoModelForSequenceClassification, dtype=torch.float32, **settings
        )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = load_tokenizer(tier).pad_token_id
    return model


def _from_source(tier: Tier, auto_class: Any, **settings: Any) -> Any:
    folder = model_folder(tier)
    where = folder if folder is not None else tier.model.hub
    if tier.model.revision is not None:
        settings["revision"] = tier.model.revision
    return load_pretrained(
        auto_class, str(where), tier.model.name, from_hub=folder is None, **settings
    )
