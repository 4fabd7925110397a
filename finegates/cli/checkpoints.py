"""Resolves MODEL on the command line to a model and its tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

import finegates as fg
from finegates.cli.failures import CommandError, message_of
from finegates.files import file_digest

STRUCTURE = "finegates.json"
"""The file that identifies a folder of this library."""

_DECIDING = (
    *("config.json", STRUCTURE, "*.safetensors"),
    *("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    "*.model",
)


def is_own(where: str) -> bool:
    """Whether it is a folder of :func:`finegates.save` or of a checkpoint with gates."""
    return (Path(where) / STRUCTURE).is_file()


def load_model(where: str) -> nn.Module:
    """Loads a dense, gated or compact model on the CPU, in evaluation mode.

    A model that is not from this library is loaded in float32.

    Args:
        where: a folder, or a hub id. The class is the one named in the configuration, or else the
            model without a head.

    Raises:
        CommandError: the model does not exist or cannot be loaded.
        ValueError: a folder of this library is corrupt.
    """
    if is_own(where):
        return fg.load(where)
    import torch
    from transformers import AutoModel

    loader = _named_class(_config(where)) or AutoModel
    return _loaded(loader, where, dtype=torch.float32).eval()


def load_classifier(where: str, labels: tuple[str, ...] | None) -> tuple[nn.Module, bool]:
    """Loads a model with a task head in float32 on the CPU.

    Args:
        where: a folder in Hugging Face layout, or a hub id.
        labels: names of the classes; None for regression, which has one output.

    Returns:
        the model, and whether the checkpoint had a head with this number of outputs.

    Raises:
        CommandError: as for :func:`load_model`, the folder contains a model of this library, or
            transformers has no head for text on models of this type.
    """
    if is_own(where):
        raise CommandError(
            f"{where} is a model of finegates already, and shrinking starts from a dense one; give "
            "the pretrained model, or compact a gated checkpoint with finegates compact"
        )
    import torch
    from transformers import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        AutoModelForSequenceClassification,
    )

    config = _config(where)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise CommandError(
            f"{where}: shrink is for text classification only, and transformers has no such head "
            f"for models of type {config.model_type!r}; gate it from Python with "
            "finegates.GateTrainer"
        )
    settings: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    if labels is not None:
        settings = {
            "num_labels": len(labels),
            "problem_type": "single_label_classification",
            "id2label": dict(enumerate(labels)),
            "label2id": {name: code for code, name in enumerate(labels)},
        }
    model, report = _loaded(
        AutoModelForSequenceClassification,
        where,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **settings,
    )
    # The checkpoint's was that of another class; save_pretrained would set it to this one.
    model.config.architectures = [type(model).__name__]
    return model, not (report["missing_keys"] or report["mismatched_keys"])


def load_tokenizer(where: str) -> Any:
    """Loads the tokenizer that is saved with a model.

    Raises:
        CommandError: there is no tokenizer.
    """
    from transformers import AutoTokenizer

    tokenizer = find_tokenizer(where)
    if tokenizer is not None:
        return tokenizer
    if Path(where).is_dir():
        raise CommandError(f"{where}: has no tokenizer; save the model's there (save_pretrained)")
    return _loaded(AutoTokenizer, where)


def find_tokenizer(where: str) -> Any | None:
    """The tokenizer in a folder, None if there is none.

    Raises:
        CommandError: its files cannot be read.
    """
    from transformers import AutoTokenizer

    if not any((Path(where) / name).is_file() for name in ("tokenizer_config.json", "vocab.txt")):
        return None
    return _loaded(AutoTokenizer, where)


def check_length(model: nn.Module, length: int) -> None:
    """Raises CommandError if sequences would be longer than the model's positions."""
    most = positions(model)
    if most is not None and length > most:
        raise CommandError(
            f"sequences of {length} tokens are longer than the {most} positions that "
            f"{type(model).__name__} has; lower --max-length (--length) to {most} or less"
        )


def positions(model: nn.Module) -> int | None:
    """The longest sequence of a model; None if it has no position table."""
    lengths = []
    for name, module in model.named_modules():
        known = name.rpartition(".")[2] in _POSITIONS
        if known and isinstance(module, nn.Embedding):
            # RoBERTa's positions start after that of padding, BART's and OPT's after two others.
            first = 0 if module.padding_idx is None else module.padding_idx + 1
            lengths.append(module.num_embeddings - getattr(module, "offset", first))
        angles = module._buffers.get("embed_positions")  # of GPT-J
        if angles is not None and angles.ndim == 2:
            lengths.append(angles.shape[0])
    return min(lengths, default=None)


_POSITIONS = ("position_embeddings", "wpe", "embed_positions")


def digest(where: str, model: nn.Module) -> str:
    """Identifies a pretrained model with its tokenizer.

    It is the SHA-256 of the files that determine the outputs, or the commit of a hub id.
    """
    if not Path(where).is_dir():
        return f"{where}@{getattr(model.config, '_commit_hash', None)}"
    return digest_of_files(
        sorted({file for name in _DECIDING for file in Path(where).glob(name) if file.is_file()})
    )


def digest_of_files(files: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of files."""
    lines = [f"{file_digest(file)}  {file.name}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _config(where: str) -> Any:
    """The configuration of a folder or hub id."""
    from transformers import AutoConfig

    path = Path(where)
    if path.is_file():
        raise CommandError(f"{where} is a file; give the folder that holds the model")
    if path.is_dir() and not (path / "config.json").is_file():
        raise CommandError(
            f"{where} holds neither config.json nor {STRUCTURE}; give a folder that "
            "save_pretrained or finegates.save wrote"
        )
    if not path.is_dir() and _is_meant_as_folder(where):
        raise CommandError(f"{where}: no such folder; check the path, or give a hub id")
    if not path.is_dir() and not _may_be_on_hub(where):
        raise CommandError(
            f"{where}: no such folder, and no model hub is asked (HF_HUB_OFFLINE is set); check "
            "the id and the network, or give a folder"
        )
    return _loaded(AutoConfig, where)


def _is_meant_as_folder(where: str) -> bool:
    """Whether a missing folder is not a hub id, so that no hub needs to be asked."""
    path = Path(where)
    if path.is_absolute() or where.startswith((".", "~")) or where.count("/") > 1:
        return True
    return "/" in where and path.parent.is_dir()


def _may_be_on_hub(where: str) -> bool:
    """Whether a hub can be asked for an id, or its answer is stored on this machine."""
    from huggingface_hub import constants, try_to_load_from_cache

    if not constants.HF_HUB_OFFLINE:
        return True
    try:
        return isinstance(try_to_load_from_cache(where, "config.json"), str)
    except ValueError:  # not an id
        return False


def _named_class(config: Any) -> Any | None:
    """The class that a configuration names, of transformers or registered; else None."""
    import transformers

    from finegates.formats.skeleton import registered_class

    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
        own = registered_class(config.model_type, str(name))
        if own is not None:
            return own
    return None


def _loaded(loader: Any, where: str, **settings: Any) -> Any:
    """``loader.from_pretrained(where)``, with no code of the model's own run."""
    if issubclass(loader, nn.Module) or hasattr(
        loader, "from_config"
    ):  # configurations and tokenizers have no weights
        settings["use_safetensors"] = True
    try:
        return loader.from_pretrained(where, trust_remote_code=False, **settings)
    except Exception as error:  # config.json may be invalid in any way
        remedy = (
            "check the folder; weights are read from .safetensors files only"
            if Path(where).is_dir()
            else "check the id and the network, or give a folder"
        )
        reason = message_of(error) or type(error).__name__
        raise CommandError(f"{where}: cannot be loaded ({reason}); {remedy}") from error
