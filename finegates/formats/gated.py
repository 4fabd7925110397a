"""Gated models on disk: checkpoints of a training, and what :func:`finegates.save` makes of one.

A folder holds ``model.safetensors``, the state dict of the gated model with shared tensors written
once; ``buffers.safetensors``, where the model has buffers that its state dict leaves out; and
``finegates.json``: the model's blueprint, the digests of the tensor files, and its own. Gates lie
between the names that transformers and ``peft`` know, and what these do not find they start at
random; so ``config.json`` is a signpost, which ``from_pretrained`` refuses with the remedy (without
one, it takes a default configuration). Neither pickle nor code from the folder is ever run.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finegates.files import (
    file_digest,
    whole_file,
    whole_folder,
)
from finegates.formats.blueprint import build, draw
from finegates.formats.bounds import at_most_parameters
from finegates.formats.description import (
    STRUCTURE,
    TENSORS,
    FolderError,
    read_description,
    write_description,
)
from finegates.formats.signpost import CONFIG, GATED, is_signpost, said, write_signpost
from finegates.formats.tensors import fill, unique_tensors
from finegates.gates.gate import HARDNESS, StochasticGate
from finegates.initialisation import mark_initialised
from finegates.modules.tying import forget_untied

FORMAT = GATED
VERSION = 1
BUFFERS = "buffers.safetensors"

# What transformers and peft write of a model, and replace when they write another one there.
_STOCK = (
    *(CONFIG, "generation_config.json", "adapter_config.json", "adapter_model.safetensors"),
    *("model.safetensors.index.json", "model-*-of-*.safetensors"),
)


class GatedFormatError(FolderError):
    """A folder does not hold a gated model that can be trusted; says which folder and why."""


def is_gated_folder(folder: str | Path) -> bool:
    """Whether a folder says of itself that it holds a gated model, sound or damaged."""
    return said(Path(folder) / STRUCTURE, "format") == FORMAT


def is_stock_folder(folder: str | Path) -> bool:
    """Whether a folder holds what ``from_pretrained`` would take for a model."""
    folder = Path(folder)
    return said(folder / CONFIG, "model_type") is not None and not is_signpost(folder)


def save_gated(model: nn.Module, folder: str | Path) -> None:
    """Writes a gated model so that :func:`load_gated` makes it again. The folder appears whole or
    not at all.

    An earlier save of a gated model in the same place is replaced; files of others in it (a
    tokenizer, say) are kept.

    Args:
        model: with gates; a transformers model, or a ``peft`` model around one.
        folder: where to; its parent is made if need be.

    Raises:
        ValueError: the model could not be made again (:func:`finegates.formats.blueprint.draw`).
        FileExistsError: the path is in use and is not an earlier save of a gated model.
    """
    folder = Path(folder)
    structure = _structure(draw(model))
    if folder.exists() and not is_gated_folder(folder) and not _is_empty_folder(folder):
        raise FileExistsError(
            f"{folder} exists and is not an earlier save of a gated model; choose another path"
        )
    with whole_folder(folder) as aside:
        if folder.is_dir():
            for entry in folder.iterdir():
                if entry.name not in (STRUCTURE, TENSORS, BUFFERS, CONFIG):
                    copy = shutil.copytree if entry.is_dir() else shutil.copy2
                    copy(entry, aside / entry.name)
        _write(model, aside, structure, None)


def write_checkpoint(
    model: nn.Module, folder: str | Path, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Writes a gated model into a folder that may hold other files of a training.

    Files of a model that transformers or ``peft`` wrote there are replaced, as those would replace
    each other's. The structure is written last: until then, readers refuse the folder.

    Args:
        model: with gates. One that could not be made again, because its class is not one of
            transformers, say, is written all the same: its tensors can be put into a model that was
            made in the same way (:func:`put_checkpoint`).
        folder: made if need be.
        state_dict: instead of the model's own, where its tensors are spread over devices.
    """
    folder = Path(folder)
    try:
        structure = _structure(draw(model))
    except ValueError as error:
        structure = {**_structure(None), "reason": str(error)}
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in (STRUCTURE, BUFFERS, *_STOCK):
        for file in folder.glob(pattern):
            file.unlink()
    _write(model, folder, structure, state_dict)


def load_gated(folder: str | Path, *, device: torch.device | str = "cpu") -> nn.Module:
    """Makes a gated model from a folder; needs neither the original weights nor a network.

    Args:
        folder: of :func:`save_gated` or a checkpoint of :class:`finegates.GateTrainer`. Files of
            others in it are ignored.
        device: where the tensors go.

    Returns:
        the gated model, in its ``peft`` wrapper if it had one, in evaluation mode, with the outputs
        of the one that was saved, bit for bit, ready for :func:`finegates.compact` or for more
        training.

    Raises:
        GatedFormatError: a file is missing or damaged, the format's version is unknown, or the
            structure describes no model, or not the one whose tensors are stored.
    """
    folder = Path(folder)
    structure, state, buffers = _read(folder, device)
    blueprint = structure.get("model")
    if blueprint is None:
        raise GatedFormatError(
            folder,
            f"the model cannot be made from its description: {structure.get('reason')}; make and "
            "gate it as you did for the training, and resume with GateTrainer, or load "
            f"{TENSORS} with load_state_dict(..., strict=False)",
        )
    sizes = [size for tensor in state.values() for size in tensor.shape]
    try:
        with at_most_parameters(4 * len(state) + 64):
            model = build(blueprint, max(sizes, default=0))
    except Exception as error:  # any file may come as "blueprint"; say which folder it was
        raise GatedFormatError(folder, f"{STRUCTURE} describes no model: {error}") from error
    try:
        _fill(model, {**state, **buffers}, structure["aliases"], set(blueprint["trainable"]))
    except ValueError as error:
        raise GatedFormatError(folder, str(error)) from error
    forget_untied(model)
    return mark_initialised(model.to(device)).eval()


def put_checkpoint(model: nn.Module, folder: str | Path) -> None:
    """Puts the tensors of a folder into a model that was made and gated in the same way, in place.

    Args:
        model: with gates.
        folder: of :func:`write_checkpoint` or :func:`save_gated`.

    Raises:
        GatedFormatError: a file is missing or damaged, or holds tensors of other names or sizes
            than the model's. The model is then as it was.
    """
    folder = Path(folder)
    _, state, _ = _read(folder, "cpu")
    own, _, _ = _tensors(model)
    differing = sorted(own.keys() ^ state.keys())
    differing = differing or [n for n in own if own[n].shape != state[n].shape]
    if differing:
        raise GatedFormatError(
            folder,
            f"was written by a model with other gates, adapters or layers: the first difference is "
            f"{differing[0]}; attach gates as for that training, or load it with finegates.load",
        )
    model.load_state_dict(state, strict=False)  # further names of shared tensors are not stored


def _structure(blueprint: dict[str, Any] | None) -> dict[str, Any]:
    import transformers

    return {
        "format": FORMAT,
        "version": VERSION,
        "transformers": transformers.__version__,
        "model": blueprint,
    }


def _write(
    model: nn.Module,
    folder: Path,
    structure: dict[str, Any],
    state_dict: dict[str, Tensor] | None,
) -> None:
    state, buffers, aliases = _tensors(model)
    if state_dict is not None:
        state = {name: state_dict[name].contiguous() for name in state}
    files = {TENSORS: state, BUFFERS: buffers}
    write_signpost(folder, FORMAT)
    digests = {}
    for name, tensors in files.items():
        if tensors:
            with whole_file(folder / name) as aside:
                save_file(tensors, aside, metadata={"format": "pt"})
            digests[name] = file_digest(folder / name)
    write_description(folder, {**structure, "aliases": aliases, "files_sha256": digests})


def _tensors(
    model: nn.Module,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, str]]:
    """The state dict with every tensor once, the other buffers, and the further names of either."""
    tensors, aliases = unique_tensors(model)
    kept = model.state_dict().keys()
    state = {name: tensor for name, tensor in tensors.items() if name in kept}
    buffers = {name: tensor for name, tensor in tensors.items() if name not in kept}
    state |= {name: gate.get_extra_state() for name, gate in _stochastic(model).items()}
    return state, buffers, aliases


def _stochastic(model: nn.Module) -> dict[str, StochasticGate]:
    """The gates by the names of their hardness, each once."""
    return {
        f"{path}.{HARDNESS}": module
        for path, module in model.named_modules()
        if isinstance(module, StochasticGate)
    }


def _read(
    folder: Path, device: torch.device | str
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """The structure, the state and the other buffers, every digest checked."""
    structure = read_description(folder, FORMAT, VERSION, GatedFormatError)
    if not isinstance(structure.get("aliases"), dict):
        raise GatedFormatError(
            folder, f"{STRUCTURE} does not say which tensors are one and the same"
        )
    digests = structure.get("files_sha256")
    if not isinstance(digests, dict) or not {TENSORS} <= digests.keys() <= {TENSORS, BUFFERS}:
        raise GatedFormatError(folder, f"{STRUCTURE} does not say which files belong to it")
    found: dict[str, dict[str, Tensor]] = {TENSORS: {}, BUFFERS: {}}
    for name, expected in digests.items():
        if not (folder / name).is_file():
            raise GatedFormatError(folder, f"{name} is missing")
        digest = file_digest(folder / name)
        if digest != expected:
            raise GatedFormatError(
                folder, f"{name} is damaged: its sha256 is {digest}, not as {STRUCTURE} says"
            )
        try:
            found[name] = load_file(folder / name, device=str(device))
        except SafetensorError as error:
            raise GatedFormatError(folder, f"{name} cannot be read: {error}") from error
    return structure, found[TENSORS], found[BUFFERS]


def _fill(
    model: nn.Module, stored: dict[str, Tensor], aliases: dict[str, str], trainable: set[str]
) -> None:
    """Puts everything that is stored into a model without storage.

    Raises:
        ValueError: something is missing, or is not the model's.
    """
    for name, gate in _stochastic(model).items():
        if name not in stored:
            raise ValueError(f"{name}, the hardness of a gate, is missing")
        if stored[name].numel() != 1:
            raise ValueError(f"{name}, the hardness of a gate, is not one number")
        gate.set_extra_state(stored.pop(name))
    fill(model, stored, aliases)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)


def _is_empty_folder(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is None
