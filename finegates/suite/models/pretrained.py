"""Loads pretrained models and tokenizers without running their code.

A folder or a hub repository may have Python files, or pickled weights, which can run code, too.
transformers prompts before it runs Python files, and loads pickled weights if there is no
safetensors file. Here both are errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finegates.files import parse_json


class ModelError(ValueError):
    """A model cannot be loaded. The message names it and the remedy."""


def load_pretrained(
    auto_class: Any, where: str | Path, name: str, *, from_hub: bool = False, **settings: Any
) -> Any:
    """``auto_class.from_pretrained`` without remote code or pickle.

    Args:
        auto_class: an auto-class of transformers.
        where: a folder, or a hub id.
        name: name of the model, for messages.
        from_hub: whether ``where`` is a hub id.
        settings: see ``from_pretrained``; ``revision`` for a hub id.

    Raises:
        ModelError: the model does not exist, the network is down, the class cannot load it, its
            weights are only pickled, or it needs custom code.
    """
    if not from_hub and not Path(where).is_dir():
        # transformers would use its name as a hub id, without a pinned revision.
        raise ModelError(
            f"cannot load model {name!r} from {where} (no such folder); check the folder"
        )
    if from_hub and Path(where).exists():
        raise ModelError(
            f"model {name!r}: {where} is a hub id, but a folder of that name exists here and would "
            "be taken for it; move it, or set path to it instead of hub and revision"
        )
    try:
        _check_stays(Path(where))
        _check_asks_for_no_code(where, name, settings.get("revision"))
        if hasattr(auto_class, "from_config"):  # only models have weights
            settings["use_safetensors"] = True
        return auto_class.from_pretrained(where, trust_remote_code=False, **settings)
    except ModelError:
        raise
    except Exception as error:  # config.json may hold anything, so name the folder
        remedy = (
            "check the network, or download it elsewhere and set path to the folder"
            if from_hub
            else "check the folder; weights are read from .safetensors files only"
        )
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"cannot load model {name!r} from {where} ({reason}); {remedy}") from error


def _check_stays(folder: Path) -> None:
    """Raises ValueError if an index of weights names files outside its folder."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    for file in parse_json(index.read_text(encoding="utf-8"))["weight_map"].values():
        if Path(file).name != file:
            raise ValueError(f"{index.name} names {file!r}, which is not a file of its folder")


def _check_asks_for_no_code(where: str | Path, name: str, revision: str | None) -> None:
    from transformers import PretrainedConfig
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    from finegates.formats.bounds import check_numbers

    described, _ = PretrainedConfig.get_config_dict(where, revision=revision)
    check_numbers(described)
    tokenizer = get_tokenizer_config(where, revision=revision)
    for file, values in (("config.json", described), ("tokenizer_config.json", tokenizer)):
        for key in _asking(values):
            raise ModelError(
                f"model {name!r} from {where}: {file} asks for code of its own ({key!r}), which "
                "is never run; take a model that transformers has a class for, or delete the key "
                "if its class computes the same"
            )


def _asking(values: Any) -> list[str]:
    """Keys of a configuration, at any depth, that refer to custom code."""
    if isinstance(values, list):
        return [key for value in values for key in _asking(value)]
    if not isinstance(values, dict):
        return []
    found = [key for key in ("auto_map", "custom_pipelines") if values.get(key)]
    # An attention implementation with a slash in its name is a hub repository of kernels.
    found += [
        key
        for key, value in values.items()
        if key.endswith("_implementation") and isinstance(value, str) and "/" in value
    ]
    return found + [key for value in values.values() for key in _asking(value)]
