"""Gated models on disk: training checkpoints, and folders of :func:`finegates.save`.

A folder contains ``model.safetensors``, the state dict of the gated model with shared tensors
written once; ``buffers.safetensors``, if the model has buffers outside its state dict; and
``finegates.json`` with the model's blueprint, the SHA-256 of the tensor files, and its own. Gates
change the parameter names that transformers and ``peft`` expect, and these would initialise missing
names at random. So ``config.json`` is a signpost that ``from_pretrained`` refuses with the remedy
(without one, it would use a default configuration). Neither pickle nor code from the folder is ever
run.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finegates.adapters import unwrap
from finegates.compaction.cost import CostModel
from finegates.compaction.removal import keep_positions, positions_kept
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
from finegates.formats.registered import descriptions_of, unregistered, with_code
from finegates.formats.signpost import CONFIG, GATED, is_signpost, said, write_signpost
from finegates.formats.tensors import fill, unique_tensors
from finegates.gates.config import GateConfig
from finegates.gates.parts import gated_parts, set_gate_config
from finegates.gates.stochastic import HARDNESS, StochasticGate
from finegates.initialisation import mark_initialised
from finegates.modules.tying import forget_untied

FORMAT = GATED
VERSION = 1
BUFFERS = "buffers.safetensors"

# Files of a model that transformers and peft write, and replace when they save another one.
_STOCK = (
    *(CONFIG, "generation_config.json", "adapter_config.json", "adapter_model.safetensors"),
    *("model.safetensors.index.json", "model-*-of-*.safetensors"),
)


class GatedFormatError(FolderError):
    """A folder does not contain a valid gated model."""


def is_gated_folder(folder: str | Path) -> bool:
    """Whether a folder claims to contain a gated model, valid or corrupt."""
    return said(Path(folder) / STRUCTURE, "format") == FORMAT


def is_stock_folder(folder: str | Path) -> bool:
    """Whether ``from_pretrained`` would take a folder for a model."""
    folder = Path(folder)
    return said(folder / CONFIG, "model_type") is not None and not is_signpost(folder)


def save_gated(model: nn.Module, folder: str | Path) -> None:
    """Saves a gated model to a folder, atomically.

    :func:`load_gated` rebuilds it. An earlier save of a gated model is replaced; other files in the
    folder (such as a tokenizer) are kept.

    Args:
        model: with gates; a transformers model, or a ``peft`` model around one.
        folder: destination; its parent is made if needed.

    Raises:
        ValueError: the model could not be rebuilt (:func:`finegates.formats.blueprint.draw`).
        FileExistsError: the path exists and is not an earlier save of a gated model.
    """
    folder = Path(folder)
    structure = _structure(draw(model), model)
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
    """Writes a gated model into a folder that may contain other training files.

    Model files that transformers or ``peft`` wrote there are replaced. The structure is written
    last: until then, readers refuse the folder.

    Args:
        model: with gates. A model that could not be rebuilt, for example because its class is not
            one of transformers, is written, too: its tensors can be loaded into a model that was
            made in the same way (:func:`put_checkpoint`).
        folder: made if needed.
        state_dict: replaces the model's own if its tensors are spread over devices.
    """
    folder = Path(folder)
    try:
        structure = _structure(draw(model), model)
    except ValueError as error:
        structure = {**_structure(None, model), "reason": str(error)}
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in (STRUCTURE, BUFFERS, *_STOCK):
        for file in folder.glob(pattern):
            file.unlink()
    _write(model, folder, structure, state_dict)


def load_gated(folder: str | Path, *, device: torch.device | str = "cpu") -> nn.Module:
    """Loads a gated model, without original weights or a network.

    Args:
        folder: of :func:`save_gated` or a checkpoint of :class:`finegates.GateTrainer`. Other files
            in it are ignored.
        device: of the tensors.

    Returns:
        the gated model in evaluation mode, in its ``peft`` wrapper if it had one. Its outputs equal
        those of the saved model bit for bit. It is ready for :func:`finegates.compact` or for more
        training.

    Raises:
        GatedFormatError: a file is missing or corrupt, the format's version is unknown, or the
            structure is invalid or does not match the stored tensors.
    """
    folder = Path(folder)
    structure, state, buffers = _read(folder, device)
    blueprint = structure.get("model")
    if blueprint is None:
        raise GatedFormatError(
            folder,
            f"the model cannot be rebuilt from its description: {structure.get('reason')}; make "
            "and gate it as you did for the training, and resume with GateTrainer, or load "
            f"{TENSORS} with load_state_dict(..., strict=False)",
        )
    sizes = [size for tensor in state.values() for size in tensor.shape]
    try:
        with at_most_parameters(4 * len(state) + 64):
            model = build(blueprint, max(sizes, default=0), structure.get("kept"))
    except (
        Exception
    ) as error:  # the blueprint may be invalid in any way; the error must name the folder
        reason = unregistered(structure) or f"{STRUCTURE} does not describe a model: {error}"
        raise with_code(GatedFormatError(folder, reason), structure) from error
    try:
        _fill(model, {**state, **buffers}, structure["aliases"], set(blueprint["trainable"]))
    except ValueError as error:
        raise GatedFormatError(folder, str(error)) from error
    forget_untied(model)
    return mark_initialised(model.to(device)).eval()


def put_checkpoint(model: nn.Module, folder: str | Path) -> None:
    """Loads the tensors of a folder into an equally gated model, in place.

    A budget on predicted time continues with the stored cost model.

    Args:
        model: with gates, made and gated like the saved one.
        folder: of :func:`write_checkpoint` or :func:`save_gated`.

    Raises:
        GatedFormatError: a file is missing or corrupt, names or sizes of its tensors differ from
            the model's, or one of both has a budget on predicted time and the other has not. The
            model does not change, unless dimensions were removed before the checkpoint was written,
            which are then removed from it, too.
    """
    folder = Path(folder)
    structure, state, _ = _read(folder, "cpu")
    kept = structure.get("kept")
    if kept is None and positions_kept(model):
        raise GatedFormatError(
            folder,
            "was written before dimensions were removed from this model, which cannot come back; "
            "make and gate the model again before resuming",
        )
    priced = _priced(model, structure, folder)
    if kept is not None:
        try:
            keep_positions(model, kept)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GatedFormatError(folder, f"its removed dimensions do not fit: {error}") from error
    own, _, _ = _tensors(model)
    differing = sorted(own.keys() ^ state.keys())
    differing = differing or [n for n in own if own[n].shape != state[n].shape]
    if differing:
        raise GatedFormatError(
            folder,
            f"was written by a model with other gates, adapters or layers: the first difference is "
            f"{differing[0]}; attach gates as for that training, or load it with finegates.load",
        )
    model.load_state_dict(state, strict=False)  # aliases of shared tensors are not stored
    for part, config in priced:  # after the removal, which copies the configuration
        set_gate_config(part, config)


def _structure(blueprint: dict[str, Any] | None, model: nn.Module) -> dict[str, Any]:
    import transformers

    structure = {
        "format": FORMAT,
        "version": VERSION,
        "transformers": transformers.__version__,
        "model": blueprint,
        **descriptions_of(unwrap(model)),
    }
    kept, costs = positions_kept(model), _costs(model)
    structure |= {"kept": kept} if kept else {}
    return {**structure, "costs": costs} if costs else structure


def _costs(model: nn.Module) -> dict[str, Any]:
    """The cost models of the budgets, by path of the gated model."""
    return {
        path: config.cost.as_dict()
        for path, (_, config) in gated_parts(model).items()
        if config.cost is not None
    }


def _priced(
    model: nn.Module, structure: dict[str, Any], folder: Path
) -> list[tuple[nn.Module, GateConfig]]:
    """The gated parts of a model with the cost models that a folder names.

    A training continues with the costs that it began with, also on another machine.
    """
    found, stored = [], structure.get("costs", {})
    for path, (part, config) in gated_parts(model).items():
        if (path in stored) != (config.cost is not None):
            kinds = ["MACs", "predicted time"]
            raise GatedFormatError(
                folder,
                f"its budget is on {kinds[path in stored]}, and this model's on "
                f"{kinds[path not in stored]}; attach gates as for that training",
            )
        if path in stored:
            try:
                config = replace(config, cost=CostModel.of(stored[path]))
            except (TypeError, ValueError, AttributeError) as error:
                raise GatedFormatError(folder, f"its cost model is invalid: {error}") from error
            found.append((part, config))
    return found


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
    """The state dict with every tensor once, the other buffers, and the aliases."""
    tensors, aliases = unique_tensors(model)
    kept = model.state_dict().keys()
    state = {name: tensor for name, tensor in tensors.items() if name in kept}
    buffers = {name: tensor for name, tensor in tensors.items() if name not in kept}
    state |= {name: gate.get_extra_state() for name, gate in _stochastic(model).items()}
    return state, buffers, aliases


def _stochastic(model: nn.Module) -> dict[str, StochasticGate]:
    """The gates by the name of their hardness, each once."""
    return {
        f"{path}.{HARDNESS}": module
        for path, module in model.named_modules()
        if isinstance(module, StochasticGate)
    }


def _read(
    folder: Path, device: torch.device | str
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """The structure, the state and the other buffers, with every SHA-256 checked."""
    structure = read_description(folder, FORMAT, VERSION, GatedFormatError)
    if not isinstance(structure.get("aliases"), dict):
        raise GatedFormatError(folder, f"{STRUCTURE} does not list the tied tensors")
    digests = structure.get("files_sha256")
    if not isinstance(digests, dict) or not {TENSORS} <= digests.keys() <= {TENSORS, BUFFERS}:
        raise GatedFormatError(folder, f"{STRUCTURE} does not list its tensor files")
    found: dict[str, dict[str, Tensor]] = {TENSORS: {}, BUFFERS: {}}
    for name, expected in digests.items():
        if not (folder / name).is_file():
            raise GatedFormatError(folder, f"{name} is missing")
        digest = file_digest(folder / name)
        if digest != expected:
            raise GatedFormatError(
                folder, f"{name} is corrupt: its SHA-256 {digest} does not match {STRUCTURE}"
            )
        try:
            found[name] = load_file(folder / name, device=str(device))
        except SafetensorError as error:
            raise GatedFormatError(folder, f"{name} cannot be read: {error}") from error
    return structure, found[TENSORS], found[BUFFERS]


def _fill(
    model: nn.Module, stored: dict[str, Tensor], aliases: dict[str, str], trainable: set[str]
) -> None:
    """Fills a model on the meta device with the stored tensors.

    Raises:
        ValueError: a tensor is missing or does not belong to the model.
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
