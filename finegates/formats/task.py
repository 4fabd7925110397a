"""Several tasks on one frozen encoder: save and load the tensors of a task.

Gates, the biases and low-rank factors trained with them, and the task head are a fraction of a
model; everything else is the same for all tasks. One encoder in memory can therefore serve many
tasks, each stored in a small file.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from finegates.adapters import unwrap
from finegates.files import parse_json, whole_file
from finegates.gates.stochastic import HARDNESS, StochasticGate
from finegates.model_argument import check_model

FORMAT = "finegates-task-3"
WITHOUT_HARDNESS = "finegates-task-2"
"""Earlier format of files without hardness, which can still be read."""
METADATA = "finegates"


class TaskStateError(ValueError):
    """A file does not contain a task of this model."""


def task_state(model: nn.Module) -> dict[str, Tensor]:
    """Tensors that belong to the task: gates, and all trained parameters.

    Args:
        model: with gates (:func:`finegates.attach`), low-rank adapters or both, and a frozen
            encoder.

    Returns:
        the parameters by name, not copies.

    Raises:
        ValueError: nothing is trained, or every weight is, so that there is no encoder to share.
    """
    inner = unwrap(model)
    # Hardened gates are frozen, but belong to the task.
    gates = {
        id(parameter)
        for module in inner.modules()
        if isinstance(module, StochasticGate)
        for parameter in module.parameters()
    }
    own: dict[str, Tensor] = {
        name: parameter
        for name, parameter in inner.named_parameters()
        if parameter.requires_grad or id(parameter) in gates
    }
    if not own:
        raise ValueError("nothing of the model is trained, and it has no gates")
    if len(own) == len(list(inner.named_parameters())):
        raise ValueError("every weight of the model is trained, so there is no encoder to share")
    return own


def save_task(model: nn.Module, path: str | Path) -> int:
    """Writes a task's tensors (safetensors), atomically.

    Args:
        model: as for :func:`task_state`.
        path: of the file.

    Returns:
        the size of the file in bytes, the storage cost of one more task.
    """
    tensors = {name: t.detach().contiguous() for name, t in task_state(model).items()}
    tensors |= {name: gate.get_extra_state() for name, gate in _gates(model).items()}
    said = {"format": FORMAT, "encoder": _encoder_digest(model), "tensors": _digest(tensors)}
    path = Path(path)
    with whole_file(path) as aside:
        # One entry only: safetensors writes several in an order that differs between processes.
        save_file(tensors, aside, metadata={METADATA: json.dumps(said)})
    return path.stat().st_size


def load_task(model: nn.Module, path: str | Path) -> None:
    """Loads a task into a model, in place.

    Args:
        model: gated like the saved one, on the same encoder; its present task is replaced.
        path: written by :func:`save_task`.

    Raises:
        TaskStateError: the file is missing, corrupt, of another format or encoder, or has tensors
            of other names or shapes. The model does not change.
    """
    check_model(model)
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = _said(file.metadata() or {})
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise TaskStateError(f"{path}: cannot be read as a task ({error})") from error
    if metadata.get("format") not in (FORMAT, WITHOUT_HARDNESS):
        raise TaskStateError(f"{path}: is not a task of the format {FORMAT!r}")
    if metadata.get("tensors") != _digest(found):
        raise TaskStateError(f"{path}: is corrupt: its tensors do not match their SHA-256")
    own, gates = task_state(model), _gates(model)
    hardness = {name: torch.zeros((), dtype=torch.float64, device="cpu") for name in gates}
    if metadata["format"] == FORMAT:
        hardness = {name: found.pop(name) for name in sorted(gates.keys() & found.keys())}
    differing = sorted(set(own) ^ set(found)) or [
        name for name in own if own[name].shape != found[name].shape
    ]
    differing = differing or sorted(gates.keys() - hardness.keys())
    differing = differing or [n for n, t in hardness.items() if t.shape or not 0.0 <= t <= 1.0]
    if differing:
        raise TaskStateError(
            f"{path}: was saved from a model with other gates, adapters or head; the first "
            f"difference is {differing[0]!r}"
        )
    if metadata.get("encoder") != _encoder_digest(model):
        raise TaskStateError(f"{path}: was trained on another encoder than this model's")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(found[name])
    for name, gate in gates.items():
        gate.set_extra_state(hardness[name])


def _gates(model: nn.Module) -> dict[str, StochasticGate]:
    """The stochastic gates by the name of their hardness in files, each once."""
    return {
        f"{path}.{HARDNESS}": module
        for path, module in unwrap(model).named_modules()
        if isinstance(module, StochasticGate)
    }


def _said(metadata: dict[str, str]) -> dict[str, Any]:
    """The metadata of a task's file; empty for another kind of file."""
    try:
        said = parse_json(metadata[METADATA])
    except (KeyError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _encoder_digest(model: nn.Module) -> str:
    """SHA-256 of all tensors that do not belong to the task."""
    own = task_state(model)
    parameters = unwrap(model).named_parameters()
    return _digest(
        {
            name: tensor
            for name, tensor in parameters
            # peft also keeps the original head, which is not used.
            if name not in own and ".original_module." not in name
        }
    )


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()
