"""Compact models on disk: a folder with ``finegates.json`` and ``model.safetensors``, nothing else.

The JSON holds the transformers class and configuration, the settings of ``generate`` where the
model has it, the sizes of every compact layer, which tensors are one and the same, the digest of
the tensor file, and its own. The tensor file holds every parameter and every buffer, also those
that transformers leaves out of its state dict, so loading computes nothing anew. Neither pickle nor
code from the folder is ever run.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finegates.compaction.bounds import at_most_parameters, check_index_buffers, check_numbers
from finegates.compaction.generation import generation_settings, set_generation
from finegates.compaction.layers import CompactLinear
from finegates.compaction.skeleton import ATTENTION, class_of, config_values, empty_model
from finegates.files import parse_json
from finegates.layers import gated_layers
from finegates.seals import content_digest, file_digest
from finegates.stock_checkpoints import guard_stock_checkpoints

FORMAT = "finegates-compact"
VERSION = 3
UNSIGNED_VERSION = 2
"""The version of structures without a digest of their own, which are read as they are."""
DIGEST = "sha256"
STRUCTURE = "finegates.json"
TENSORS = "model.safetensors"


class CompactFormatError(ValueError):
    """A folder does not hold a compact model that can be trusted; says which folder and why."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(f"{folder}: {reason}")
        self.folder = folder
        self.reason = reason


def save(model: nn.Module, folder: str | Path) -> None:
    """Writes a compact model. The folder appears whole or not at all.

    Everything is written aside and renamed. An earlier save in the same place is replaced; files of
    others in it (a tokenizer, say) are kept.

    Args:
        model: a result of :func:`finegates.compaction.compact`, of a class of transformers.
        folder: where to; its parent is made if need be.

    Raises:
        ValueError: the model has gates, or is not of a class that transformers can look up, or has
            layers that its class and configuration do not give it, or settings of generation that
            could not be loaded.
        FileExistsError: the path is in use and is not an earlier save.
    """
    folder = Path(folder)
    structure = _describe(model)
    if folder.exists() and not _is_save(folder) and not _is_empty_folder(folder):
        raise FileExistsError(
            f"{folder} exists and is not an earlier finegates save; choose another path"
        )
    tensors, aliases = _unique_tensors(model)
    structure["aliases"] = aliases

    folder.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, so that the final rename stays on one file system.
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        written = aside / "new"
        written.mkdir()
        _write(structure, tensors, written)
        if _is_save(folder):
            for entry in folder.iterdir():
                if entry.name not in (STRUCTURE, TENSORS):
                    copy = shutil.copytree if entry.is_dir() else shutil.copy2
                    copy(entry, written / entry.name)
            folder.rename(aside / "old")
            try:
                written.rename(folder)
            except OSError:
                (aside / "old").rename(folder)
                raise
        else:
            written.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def save_checkpoint(model: nn.Module, folder: str | Path) -> None:
    """Writes the files of :func:`save` into a trainer's folder, next to what it has there.

    Args:
        model: as :func:`save` takes it.
        folder: an existing folder with any files; those of an earlier save are replaced.

    Raises:
        ValueError: as :func:`save`.
    """
    folder = Path(folder)
    structure = _describe(model)
    tensors, structure["aliases"] = _unique_tensors(model)
    aside = Path(tempfile.mkdtemp(prefix=".finegates.", dir=folder))
    try:
        _write(structure, tensors, aside)
        # The structure last: it holds the digest of the tensors, and load compares.
        for name in (TENSORS, STRUCTURE):
            (aside / name).replace(folder / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(structure: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> None:
    """Writes both files into an empty folder; adds the digests to the structure."""
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    structure["tensors_sha256"] = file_digest(folder / TENSORS)
    structure[DIGEST] = content_digest(structure)
    text = json.dumps(structure, indent=2, sort_keys=True)
    (folder / STRUCTURE).write_text(text + "\n", encoding="utf-8")


def load(folder: str | Path, *, device: torch.device | str = "cpu") -> nn.Module:
    """Reads a compact model; needs neither the original weights nor a network.

    Args:
        folder: written by :func:`save`. Files of others in it are ignored.
        device: where the tensors go.

    Returns:
        the model in evaluation mode, with the outputs of the one that was saved, bit for bit, and
        its settings of generation (a folder from before they were kept leaves those that the
        configuration gives).

    Raises:
        CompactFormatError: a file is missing or damaged, the format's version is unknown, the class
            is not one that transformers maps to the configuration's type, sizes or indices
            disagree, or a setting of generation is none.
    """
    folder = Path(folder)
    structure = _read_structure(folder)
    if not (folder / TENSORS).is_file():
        raise CompactFormatError(folder, f"{TENSORS} is missing")
    digest = file_digest(folder / TENSORS)
    if digest != structure["tensors_sha256"]:
        raise CompactFormatError(
            folder, f"{TENSORS} is damaged: its sha256 is {digest}, not as {STRUCTURE} says"
        )
    try:
        stored = load_file(folder / TENSORS, device=str(device))
    except SafetensorError as error:
        raise CompactFormatError(folder, f"{TENSORS} cannot be read: {error}") from error
    try:
        check_numbers(structure["config"])
        # A layer that became compact had two parameters, and has at least one tensor.
        with at_most_parameters(4 * (len(stored) + len(structure["aliases"])) + 64):
            model = empty_model(structure)
    except Exception as error:  # any file may come as "configuration"; say which folder it was
        raise CompactFormatError(folder, f"{STRUCTURE} describes no model: {error}") from error
    try:
        set_generation(model, structure.get("generation_config"))
        _fill(model, stored, structure["aliases"])
    except ValueError as error:
        raise CompactFormatError(folder, str(error)) from error
    guard_stock_checkpoints()
    return model.eval()


def _describe(model: nn.Module) -> dict[str, Any]:
    """The structure of a model as plain values; raises ValueError if it could not be loaded."""
    if gated_layers(model):
        raise ValueError("the model has gates; save what finegates.compact returns")
    config = getattr(model, "config", None)
    if not hasattr(config, "model_type") or not hasattr(config, "to_dict"):
        raise ValueError(f"{type(model).__name__} is not a transformers model: it has no config")
    import transformers

    attention = getattr(config, "_attn_implementation", None)
    structure = {
        "format": FORMAT,
        "version": VERSION,
        "transformers": transformers.__version__,
        "class": type(model).__name__,
        "config": config_values(config),
        "attention": attention if attention in ATTENTION else None,
        "heads": {
            path: asdict(module.finegates_heads)
            for path, module in model.named_modules()
            if hasattr(module, "finegates_heads")
        },
        "joined": [
            path for path, module in model.named_modules() if hasattr(module, "finegates_joined")
        ],
        "layers": {
            path: {
                "in_features": layer.in_features,
                "out_features": layer.out_features,
                "kept_in": layer.weight.shape[1],
                "kept_out": layer.weight.shape[0],
                "gather": layer.cols is not None,
                "scatter": layer.rows is not None,
                "bias": layer.bias is not None,
                "dense_shape": list(layer.dense_shape),
            }
            for path, layer in model.named_modules()
            if isinstance(layer, CompactLinear)
        },
    }
    if not structure["layers"]:
        raise ValueError(
            "the model has no compact layers; use finegates.compact first, or save_pretrained"
        )
    empty = empty_model(structure)
    settings = generation_settings(model)
    if settings is not None:
        set_generation(empty, settings)
        structure["generation_config"] = settings
    skeleton = dict(_named_tensors(empty))
    differing = sorted(
        name
        for name, tensor in _named_tensors(model)
        if name not in skeleton or skeleton[name].shape != tensor.shape
    ) + sorted(skeleton.keys() - {name for name, _ in _named_tensors(model)})
    if differing:
        raise ValueError(
            f"{type(model).__name__} and its configuration do not give the tensors "
            f"{', '.join(differing[:3])}{' ...' if len(differing) > 3 else ''} of this model; "
            "such a model could not be loaded"
        )
    return structure


def _read_structure(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CompactFormatError(folder, "is not a folder")
    try:
        structure = parse_json((folder / STRUCTURE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CompactFormatError(folder, f"{STRUCTURE} is missing") from None
    except ValueError as error:
        raise CompactFormatError(folder, f"{STRUCTURE} is not JSON: {error}") from error
    if not isinstance(structure, dict) or structure.get("format") != FORMAT:
        raise CompactFormatError(folder, f"{STRUCTURE} is not of the format {FORMAT!r}")
    version = structure.get("version")
    if version not in (VERSION, UNSIGNED_VERSION):
        raise CompactFormatError(
            folder, f"has format version {version!r}; this finegates reads version {VERSION}"
        )
    if version == VERSION and structure.pop(DIGEST, None) != content_digest(structure):
        raise CompactFormatError(folder, f"{STRUCTURE} is damaged: it has not the digest it names")
    kinds = {
        "class": str,
        "config": dict,
        "layers": dict,
        "heads": dict,
        "aliases": dict,
        "tensors_sha256": str,
    }
    for key, kind in kinds.items():
        if not isinstance(structure.get(key), kind):
            raise CompactFormatError(folder, f"{STRUCTURE}: {key!r} is missing or not a {kind}")
    joined = structure.setdefault("joined", [])  # a folder from before there were any
    if not isinstance(joined, list) or not all(isinstance(path, str) for path in joined):
        raise CompactFormatError(folder, f"{STRUCTURE}: 'joined' is no list of paths")
    if not isinstance(structure.get("generation_config", {}), dict):
        raise CompactFormatError(folder, f"{STRUCTURE}: 'generation_config' is not a {dict}")
    try:
        class_of(structure)
    except ValueError as error:
        raise CompactFormatError(folder, str(error)) from None
    return structure


def _fill(model: nn.Module, stored: dict[str, Tensor], aliases: dict[str, str]) -> None:
    """Puts the stored tensors into the skeleton; tied names get one and the same object."""
    expected = dict(_named_tensors(model))
    unknown = sorted((stored.keys() | aliases.keys()) - expected.keys())
    if unknown:
        raise ValueError(f"{TENSORS} holds {unknown[0]}, which the model does not have")
    objects: dict[str, Tensor] = {}
    for name, empty in expected.items():
        source = aliases.get(name, name)
        if source not in stored:
            raise ValueError(f"tensor {name} is missing from {TENSORS}")
        tensor = stored[source]
        if tensor.shape != empty.shape:
            raise ValueError(
                f"tensor {name} has shape {tuple(tensor.shape)}, the model needs "
                f"{tuple(empty.shape)}"
            )
        is_float = tensor.is_floating_point()
        if is_float != empty.is_floating_point() or not (is_float or tensor.dtype == empty.dtype):
            raise ValueError(f"tensor {name} is of {tensor.dtype}, the model needs {empty.dtype}")
        if not (empty.is_meta or is_float or torch.equal(tensor, empty.to(tensor.device))):
            raise ValueError(f"tensor {name} holds other indices than its heads' sizes give")
        is_parameter = isinstance(empty, nn.Parameter)
        if source not in objects:
            # Tensors of a mapped file lie at odd addresses, where matrix products take other paths
            # and round differently; a copy lies where torch allocates.
            tensor = tensor.clone()
            objects[source] = nn.Parameter(tensor) if is_parameter else tensor
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        tensors: dict[str, Any] = owner._parameters if is_parameter else owner._buffers
        tensors[child] = objects[source]
    check_index_buffers(model)
    for path, layer in model.named_modules():
        if isinstance(layer, CompactLinear):
            try:
                layer.place_outputs()
            except ValueError as error:
                raise ValueError(f"layer {path}: {error}") from None
        for name, value in vars(layer).items():
            if isinstance(value, Tensor) and value.is_meta:
                raise ValueError(f"{path}.{name} is neither parameter nor buffer and was not saved")


def _unique_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor once, ready for safetensors, and the further names of those that are tied."""
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    storages: set[int] = set()
    for name, tensor in _named_tensors(model):
        if id(tensor) in first:
            aliases[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        plain = tensor.detach().contiguous()
        pointer = plain.untyped_storage().data_ptr()
        # Views of one storage (an expanded buffer, a slice) are written as tensors of their own.
        if plain.numel() and pointer in storages:
            plain = plain.clone()
        storages.add(pointer)
        tensors[name] = plain
    return tensors, aliases


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters and buffers under all their names, also buffers outside the state dict; not
    what compact layers make from their indices."""
    yield from model.named_parameters(remove_duplicate=False)
    made = {
        f"{path}.slots"
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, CompactLinear)
    }
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name not in made:
            yield name, buffer


def _is_save(folder: Path) -> bool:
    try:
        structure = parse_json((folder / STRUCTURE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(structure, dict) and structure.get("format") == FORMAT


def _is_empty_folder(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is None
