"""Readers of model files: compact models, tasks, adapters and configurations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from target import SHARED, Target, must
from transformers import AutoConfig, AutoModelForSequenceClassification

import finegates as fg
from finegates.files import content_digest, parse_json
from finegates.formats.description import DIGEST, STRUCTURE, TENSORS
from finegates.formats.peft import ADAPTER_FILE, PeftGatesError
from finegates.formats.structure import CompactFormatError
from finegates.formats.task import TaskStateError, load_task, save_task, task_state
from finegates.suite.models.pretrained import ModelError, load_pretrained
from support.tiny import ARCHITECTURES


def _encoder() -> Any:
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(ARCHITECTURES["bert"]())


def _saved_model() -> Path:
    folder = SHARED / "model"
    if folder.exists():
        return folder
    model = _encoder()
    fg.attach(model)
    with torch.no_grad():
        for layer in fg.gated_layers(model).values():
            for _, gate in layer.gates():
                for leaf in gate.leaves():
                    leaf.latent[::3] = -3.0
    fg.save(fg.compact(model), folder)
    return folder


def compact_model() -> Target:
    """The structure file of a saved compact model, with intact tensors.

    It is tried as it is, and with a matching digest, as an attacker would write it.
    """
    saved = _saved_model()
    tensors = (saved / TENSORS).read_bytes()
    sealed = json.loads((saved / STRUCTURE).read_text())

    def read(folder: Path, content: bytes) -> Callable[[], None]:
        for name, file in (("as it is", content), ("sealed", _sealed(content))):
            (folder / name).mkdir()
            (folder / name / TENSORS).write_bytes(tensors)
            (folder / name / STRUCTURE).write_bytes(file)

        def check() -> None:
            refusal = None
            try:
                fg.load(folder / "as it is")
            except CompactFormatError as error:
                refusal = error
            else:
                must(parse_json(content.decode()) == sealed, "a structure that was changed")
            loaded = fg.load(folder / "sealed")
            must(not any(p.is_meta for p in loaded.parameters()), "a tensor without storage")
            if refusal:
                raise refusal

        return check

    return Target([(saved / STRUCTURE).read_bytes()], CompactFormatError, read, "json")


def _sealed(content: bytes) -> bytes:
    try:
        said = {k: v for k, v in parse_json(content.decode()).items() if k != DIGEST}
        return json.dumps({**said, DIGEST: content_digest(said)}).encode()
    except (ValueError, TypeError, AttributeError):
        return content


def compact_tensors() -> Target:
    """The tensor file of a saved compact model, with a matching digest."""
    saved = _saved_model()
    structure = json.loads((saved / STRUCTURE).read_text())

    def read(folder: Path, content: bytes) -> Callable[[], None]:
        (folder / TENSORS).write_bytes(content)
        described = {**structure, "tensors_sha256": hashlib.sha256(content).hexdigest()}
        (folder / STRUCTURE).write_bytes(_sealed(json.dumps(described).encode()))

        def check() -> None:
            loaded = fg.load(folder)
            with torch.no_grad():
                loaded(input_ids=torch.arange(4)[None])

        return check

    return Target([(saved / TENSORS).read_bytes()], CompactFormatError, read)


def task_file() -> Target:
    """A saved task."""
    model = _encoder()
    fg.attach(model)
    path = SHARED / "task.safetensors"
    save_task(model, path)
    saved = {name: tensor.detach().clone() for name, tensor in task_state(model).items()}

    def read(folder: Path, content: bytes) -> Callable[[], None]:
        (folder / "t.safetensors").write_bytes(content)

        def check() -> None:
            load_task(model, folder / "t.safetensors")
            found = task_state(model)
            must(all(torch.equal(found[k], saved[k]) for k in saved), "other numbers")

        return check

    return Target([path.read_bytes()], TaskStateError, read)


def adapter() -> Target:
    """An adapter of peft with gates."""
    model = _encoder()
    path = "bert.encoder.layer.0.intermediate.dense"
    rows, columns = model.get_submodule(path).weight.shape
    state = {
        f"base_model.model.{path}.finegates_rows": torch.linspace(-2, 2, rows),
        f"base_model.model.{path}.finegates_columns": torch.linspace(-2, 2, columns),
        "base_model.model.classifier.bias": torch.zeros(2),
    }

    def read(folder: Path, content: bytes) -> Callable[[], None]:
        (folder / ADAPTER_FILE).write_bytes(content)

        def check() -> None:
            fg.detach(fg.attach_from_peft(model, folder))
            must(bool(model.classifier.bias.isfinite().all()), "a bias that is not finite")

        return check

    return Target([save(state)], PeftGatesError, read)


def model_configuration() -> Target:
    """The ``config.json`` of a pretrained model's folder."""

    def read(folder: Path, content: bytes) -> Callable[[], None]:
        (folder / "config.json").write_bytes(content)

        def check() -> None:
            found = load_pretrained(AutoConfig, folder, "m")
            must(not hasattr(found, "auto_map"), "code of its own")

        return check

    seed = _encoder().config.to_json_string().encode()
    return Target([seed], ModelError, read, "json")
