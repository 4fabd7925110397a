"""Compact models on disk: a folder with ``finegates.json`` and ``model.safetensors``.

The JSON holds the transformers class and configuration, the settings of ``generate`` where the
model has it, the sizes of every compact layer, the products that were chosen for them and on which
machine, which tensors are one and the same, the digest of the tensor file, and its own. The tensor
file holds every parameter and every buffer, also those that transformers leaves out of its state
dict, so loading computes nothing again. A ``config.json`` turns ``from_pretrained`` away
(:mod:`finegates.formats.signpost`), and is not read. Neither pickle nor code from the folder is
ever run.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finegates.compaction.graphs import allow_graphs
from finegates.compaction.peft_targets import teach_peft
from finegates.files import file_digest, parse_json
from finegates.formats.description import STRUCTURE, TENSORS, write_description
from finegates.formats.gated import is_gated_folder, load_gated, save_gated
from finegates.formats.signpost import COMPACT, CONFIG, is_signpost, write_signpost
from finegates.formats.structure import (
    FORMAT,
    CompactFormatError,
    as_written,
    describe,
    read_structure,
    rebuilt,
)
from finegates.formats.tensors import unique_tensors
from finegates.gates.gated_linear import gated_layers
from finegates.initialisation import mark_initialised
from finegates.modules.stock_methods import adapt_stock_methods
from finegates.modules.tying import forget_untied


def save(model: nn.Module, folder: str | Path) -> None:
    """Writes a compact or a gated model. The folder appears whole or not at all.

    Everything is written aside and renamed. An earlier save in the same place is replaced; files of
    others in it (a tokenizer, say) are kept. ``from_pretrained`` refuses the folder and names
    :func:`load`, unless others have put a ``config.json`` there.

    Args:
        model: a result of :func:`finegates.compaction.compact`, of a class of transformers, or a
            model of transformers that has such a one inside. Or a model with gates, in a ``peft``
            wrapper or not, to be trained or compacted later.
        folder: where to; its parent is made if need be.

    Raises:
        ValueError: the model is not of a class that transformers can look up, or has layers, or
            settings in its modules, that its class and configuration do not give it, or settings
            of generation that could not be loaded. What can be saved, can be loaded.
        FileExistsError: the path is in use and is not an earlier save of such a model.
    """
    if gated_layers(model):
        save_gated(model, folder)
        return
    folder = Path(folder)
    structure, tensors = _checked(model)
    if folder.exists() and not _is_save(folder) and not _is_empty_folder(folder):
        raise FileExistsError(
            f"{folder} exists and is not an earlier finegates save; choose another path"
        )

    folder.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, so that the final rename stays on one file system.
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        written = aside / "new"
        written.mkdir()
        _write(structure, tensors, written)
        if _is_save(folder):
            own = (STRUCTURE, TENSORS, *([CONFIG] if is_signpost(folder) else []))
            for entry in folder.iterdir():
                if entry.name not in own:
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
        folder: an existing folder with any files; those of an earlier save are replaced, and the
            ``config.json`` of a model that was there.

    Raises:
        ValueError: as :func:`save`.
    """
    folder = Path(folder)
    structure, tensors = _checked(model)
    aside = Path(tempfile.mkdtemp(prefix=".finegates.", dir=folder))
    try:
        _write(structure, tensors, aside)
        # The structure last: it holds the digest of the tensors, and load compares.
        for name in (CONFIG, TENSORS, STRUCTURE):
            (aside / name).replace(folder / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(structure: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> None:
    """Writes the three files into an empty folder; adds the digests to the structure."""
    write_signpost(folder, COMPACT)
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    structure["tensors_sha256"] = file_digest(folder / TENSORS)
    write_description(folder, structure)


def load(
    folder: str | Path, *, device: torch.device | str = "cpu", products: bool = True
) -> nn.Module:
    """Reads a compact or a gated model; needs neither the original weights nor a network.

    The products that were chosen for the layers (:func:`finegates.compaction.use_products`) are
    taken up if CPU, number of threads and version of torch are those of the saving process. On
    another machine torch's default is taken, with a warning; outputs differ by rounding then.

    Args:
        folder: written by :func:`save`, or a checkpoint of :class:`finegates.GateTrainer`. Files of
            others in it are ignored.
        device: where the tensors go.
        products: False takes torch's default product for all layers, without a warning.

    Returns:
        the model in evaluation mode, with the outputs of the one that was saved, bit for bit by the
        same products, and its settings of generation (a folder from before they were kept leaves
        those that the configuration gives). No class of transformers that takes it in initialises
        its tensors.

    Raises:
        CompactFormatError: a file is missing or damaged, the format's version is unknown, the class
            is not one that transformers maps to the configuration's type, sizes or indices
            disagree, or a setting of generation is none.
        GatedFormatError: the same, of a folder that holds a gated model.
    """
    if is_gated_folder(folder):
        return load_gated(folder, device=device)
    folder = Path(folder)
    structure = read_structure(folder)
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
        model = rebuilt(structure, stored, products=products)
    except ValueError as error:
        raise CompactFormatError(folder, str(error)) from error
    forget_untied(model)
    adapt_stock_methods()
    teach_peft()
    allow_graphs(model)
    return mark_initialised(model).eval()


def _checked(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Structure and tensors of a model, from which it has been rebuilt as loading does.

    Raises:
        ValueError: it could not be.
    """
    structure = describe(model)
    tensors, structure["aliases"] = unique_tensors(model)
    rebuilt(as_written(structure), tensors, copy=False)
    return structure, tensors


def _is_save(folder: Path) -> bool:
    try:
        structure = parse_json((folder / STRUCTURE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(structure, dict) and structure.get("format") == FORMAT


def _is_empty_folder(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is None
