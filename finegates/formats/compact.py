"""Compact models on disk: a folder with ``finegates.json`` and ``model.safetensors``.

The JSON contains the transformers class and configuration, the generation settings if the model has
any, the sizes of every compact layer, the matmuls chosen for them and the machine, the names of
tied tensors, the SHA-256 of the tensor file, and its own. The tensor file contains every parameter
and every buffer, including those outside the state dict, so that loading recomputes nothing. A
``config.json`` makes ``from_pretrained`` fail with the remedy (:mod:`finegates.formats.signpost`),
and a ``README.md`` is the model card (:mod:`finegates.formats.card`); neither is read. Neither
pickle nor code from the folder is ever run.
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
from finegates.formats.card import model_card
from finegates.formats.description import STRUCTURE, TENSORS, write_description
from finegates.formats.gated import is_gated_folder, load_gated, save_gated
from finegates.formats.registered import with_code
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
from finegates.modules.cards import CARD, read_card, set_card, write_card
from finegates.modules.stock_methods import adapt_stock_methods
from finegates.modules.tying import forget_untied


def save(model: nn.Module, folder: str | Path, *, card: str | None = None) -> None:
    """Saves a compact or a gated model to a folder, atomically.

    Everything is written to a temporary folder, which is then renamed. An earlier save is replaced;
    other files in the folder (such as a tokenizer) are kept. ``from_pretrained`` refuses the folder
    and names :func:`load`, unless another ``config.json`` was put there. A compact model gets a
    model card, ``README.md``, unless there is one that was written or edited by hand.

    Every model that can be saved can be loaded.

    Args:
        model: a compact model (:func:`finegates.compaction.compact`) of a class of transformers, or
            a model of transformers with a compact one inside. Or a gated model, plain or wrapped by
            ``peft``, to be trained or compacted later.
        folder: destination; its parent is made if needed.
        card: of a compact model, by default :func:`finegates.model_card` without scores; an empty
            text leaves it out.

    Raises:
        ValueError: a card was given for a gated model; transformers cannot look up the model's
            class; layers or settings of modules differ from what its class and configuration give;
            or its generation settings could not be loaded.
        FileExistsError: the path exists and is not an earlier save of such a model.
    """
    if gated_layers(model):
        if card:
            raise ValueError("a gated model gets no card; compact it first, or leave card out")
        save_gated(model, folder)
        return
    folder = Path(folder)
    structure, tensors = _checked(model)
    if folder.exists() and not _is_save(folder) and not _is_empty_folder(folder):
        raise FileExistsError(
            f"{folder} exists and is not an earlier finegates save; choose another path"
        )
    card = model_card(model) if card is None else card

    folder.parent.mkdir(parents=True, exist_ok=True)
    # A sibling folder, so that the final rename stays on one file system.
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        written = aside / "new"
        written.mkdir()
        _write(structure, tensors, written)
        write_card(written, card)
        if _is_save(folder):
            own = [STRUCTURE, TENSORS, *([CONFIG] if is_signpost(folder) else [])]
            own += [CARD] if read_card(folder) is not None else []
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
    """Writes the files of :func:`save` into a trainer's folder.

    Args:
        model: as for :func:`save`.
        folder: an existing folder with any files; those of an earlier save and the ``config.json``
            of an earlier model are replaced.

    Raises:
        ValueError: as for :func:`save`.
    """
    folder = Path(folder)
    structure, tensors = _checked(model)
    aside = Path(tempfile.mkdtemp(prefix=".finegates.", dir=folder))
    try:
        _write(structure, tensors, aside)
        # The structure is written last: it holds the SHA-256 of the tensors, which load checks.
        for name in (CONFIG, TENSORS, STRUCTURE):
            (aside / name).replace(folder / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(structure: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> None:
    """Writes the three files into an empty folder and adds their SHA-256."""
    write_signpost(folder, COMPACT)
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    structure["tensors_sha256"] = file_digest(folder / TENSORS)
    write_description(folder, structure)


def load(
    folder: str | Path, *, device: torch.device | str = "cpu", products: bool = True
) -> nn.Module:
    """Loads a compact or a gated model, without original weights or a network.

    The matmuls that were chosen for the layers (:func:`finegates.compaction.use_products`) are
    restored if CPU, number of threads and version of torch are those of the saving process. On
    another machine torch's default is used, with a warning; outputs then differ by rounding.

    Args:
        folder: written by :func:`save`, or a checkpoint of :class:`finegates.GateTrainer`. Other
            files in it are ignored.
        device: of the tensors.
        products: False uses torch's default matmul for all layers, without a warning.

    Returns:
        the model in evaluation mode, with its generation settings; with the same matmuls its
        outputs equal those of the saved model bit for bit. If the folder has no generation
        settings, those of the configuration apply. A class of transformers that wraps the model
        does not initialise its tensors again.

    Raises:
        CompactFormatError: a file is missing or corrupt, the format's version is unknown,
            transformers does not map the configuration's type to the class, sizes or indices are
            inconsistent, or a generation setting is invalid.
        GatedFormatError: the same, for a folder with a gated model.
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
            folder, f"{TENSORS} is corrupt: its SHA-256 {digest} does not match {STRUCTURE}"
        )
    try:
        stored = load_file(folder / TENSORS, device=str(device))
    except SafetensorError as error:
        raise CompactFormatError(folder, f"{TENSORS} cannot be read: {error}") from error
    try:
        model = rebuilt(structure, stored, products=products)
    except ValueError as error:
        raise with_code(CompactFormatError(folder, str(error)), structure) from error
    forget_untied(model)
    adapt_stock_methods()
    teach_peft()
    allow_graphs(model)
    set_card(model, read_card(folder) or "")
    return mark_initialised(model).eval()


def _checked(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Structure and tensors of a model, checked by rebuilding it as loading does.

    Raises:
        ValueError: it cannot be rebuilt.
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
