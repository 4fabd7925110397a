"""Several tasks on one frozen encoder: what belongs to a task, saved and put in again.

Gates, the biases and low-rank factors trained with them, and the task head are a fraction of a
model; everything else is the same for all tasks. One encoder in memory can therefore serve many
tasks, each of them a small file.
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
from finegates.arguments import check_model
from finegates.files import parse_json, whole_file
from finegates.gates.gate import HARDNESS, StochasticGate

FORMAT = "finegates-task-3"
WITHOUT_HARDNESS = "finegates-task-2"
"""The format of files from before hardness was kept, which are read as they are."""
METADATA = "finegates"


class TaskStateError(ValueError):
    """A file does not hold a task of this model; says which file and why."""


def task_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that belong to the task: gates, and whatever else is trained.

    Args:
        model: with gates (:func:`finegates.attach`), low-rank adapters or both, its encoder frozen.

    Returns:
        by name, the parameters themselves, not copies.

    Raises:
        ValueError: nothing is trained, or every weight is, so that there is no encoder to share.
    """
    inner = unwrap(model)
    # Gates that were hardened are not trained any more, but are the task's.
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
        raise ValueError("every weight of the model is trained: there is no encoder to share")
    return own


def save_task(model: nn.Module, path: str | Path) -> int:
    """Writes a task's tensors (safetensors), whole or not at all.

    Args:
        model: as for :func:`task_state`.
        path: of the file.

    Returns:
        its size in bytes: what one more task costs to store.
    """
    tensors = {name: t.detach().contiguous() for name, t in task_state(model).items()}
    tensors |= {name: gate.get_extra_state() for name, gate in _gates(model).items()}
    said = {"format": FORMAT, "encoder": _encoder_digest(model), "tensors": _digest(tensors)}
    path = Path(path)
    with whole_file(path) as aside:
        # One entry: of several, safetensors writes another order at every start of a process.
        save_file(tensors, aside, metadata={METADATA: json.dumps(said)})
    return path.stat().st_size


def load_task(model: nn.Module, path: str | Path) -> None:
    """Puts a task into a model, in place: afterwards it computes what the saved one did.

    Args:
        model: gated as the saved one was, on the same encoder; whatever task it holds is replaced.
        path: of :func:`save_task`.

    Raises:
        TaskStateError: no such file, a damaged one, one of another format or encoder, or tensors of
            other names or shapes. The model is then as it was.
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
        raise TaskStateError(f"{path}: is no task of the format {FORMAT!r}")
    if metadata.get("tensors") != _digest(found):
        raise TaskStateError(f"{path}: is damaged: its tensors are not those that were saved")
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
    """The stochastic gates by the names under which files hold their hardness, each once."""
    return {
        f"{path}.{HARDNESS}": module
        for path, module in unwrap(model).named_modules()
        if isinstance(module, StochasticGate)
    }


def _said(metadata: dict[str, str]) -> dict[str, Any]:
    """What a task's file says of itself; nothing where it is another kind of file."""
    try:
        said = parse_json(metadata[METADATA])
    except (KeyError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _encoder_digest(model: nn.Module) -> str:
    """Digest of all that does not belong to the task."""
    own = task_state(model)
    parameters = unwrap(model).named_parameters()
    return _digest(
        {
            name: tensor
            for name, tensor in parameters
            # peft keeps the head from before beside the one it trains: nothing computes with it.
            if name not in own and ".original_module." not in name
        }
    )


def _digest(tensors: dict[str, Tensor]) -> str:
    """Digest of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()
