"""The structure of a compact model in ``finegates.json``: describe, check, rebuild."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from finegates.files import parse_json
from finegates.formats.absent import absent_modules, drop_modules
from finegates.formats.bounds import at_most_parameters, check_numbers
from finegates.formats.chosen_products import chosen_products, take_products
from finegates.formats.description import STRUCTURE, FolderError, read_description
from finegates.formats.generation import generation_settings, set_generation
from finegates.formats.implementations import TORCHS_OWN, implementations
from finegates.formats.module_settings import check_modules, seen_lengths, set_seen_lengths
from finegates.formats.registered import descriptions_of, unregistered
from finegates.formats.signpost import COMPACT
from finegates.formats.skeleton import class_of, config_values, empty_model
from finegates.formats.tensors import fill, named_tensors
from finegates.gates.gated_linear import gated_layers
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.narrow_stream import MARK
from finegates.modules.own_classes import has_config, way_to_save

FORMAT = COMPACT
VERSION = 3

_REQUIRED: dict[str, type] = {
    "class": str,
    "config": dict,
    "layers": dict,
    "heads": dict,
    "joined": list,
    "absent": list,
    "implementations": dict,
    "seen_lengths": dict,
    "aliases": dict,
    "tensors_sha256": str,
}
_OPTIONAL: dict[str, type] = {
    "generation_config": dict,
    "products": dict,
    "experts": dict,
    "stream": list,
    "descriptions": str,
}
"""Optional entries, for models that have such settings."""


class CompactFormatError(FolderError):
    """A folder does not contain a valid compact model."""


def describe(model: nn.Module) -> dict[str, Any]:
    """Describes a model as plain values, without its tensors.

    Raises:
        ValueError: the model is not a compact model of transformers, or its modules or tensors
            differ from what its class and configuration give.
    """
    if gated_layers(model):
        raise ValueError("the model has gates; save what finegates.compact returns")
    for path, layer in model.named_modules():
        if isinstance(layer, CompactLinear):
            layer.check_plain(path)
    check_config(model)
    structure = parts_of(model)
    if not structure["layers"] and not structure["experts"]:
        raise ValueError(
            "the model has no compact layers; use finegates.compact first, or save_pretrained"
        )
    check_class(model)
    empty = bare_model(structure, model)
    settings = generation_settings(model)
    if settings is not None:
        set_generation(empty, settings)
        structure["generation_config"] = settings
    products = chosen_products(model)
    if products is not None:
        structure["products"] = products
    _check_tensors(model, empty)
    check_modules(model, empty)
    return structure


def check_config(model: nn.Module) -> None:
    """Raises ValueError, with what works, for a model without a configuration of transformers."""
    if not has_config(model):
        raise ValueError(
            f"{type(model).__name__} is not a transformers model: it has no config; "
            f"{_remedy(model)}"
        )


def check_class(model: nn.Module) -> None:
    """Raises ValueError, with what works, unless a model of this class can be found again."""
    check_config(model)
    if not _is_known(model):
        raise ValueError(
            f"class {type(model).__name__!r} is not a model that transformers knows (it is defined "
            f"in {type(model).__module__}), so it could not be loaded; {_remedy(model)}"
        )


def _is_known(model: nn.Module) -> bool:
    config: Any = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    try:
        found = class_of({"class": type(model).__name__, "config": {"model_type": model_type}})
    except ValueError:
        return False
    return found is type(model)


def _remedy(model: nn.Module) -> str:
    """What can be saved of a model of unknown class, or how it can be saved."""
    for path, module in model.named_modules():
        compact = any(isinstance(layer, CompactLinear) for layer in module.modules())
        if path and compact and hasattr(type(module), "config_class") and _is_known(module):
            return (
                f"save {path} by itself, finegates.save(model.{path}, folder), and replace "
                "it by finegates.load(folder)"
            )
    return way_to_save(model)


def parts_of(model: nn.Module) -> dict[str, Any]:
    """Class, configuration and compacted layers; without ``absent``."""
    import transformers

    config: Any = model.config
    attention = getattr(config, "_attn_implementation", None)
    return {
        "format": FORMAT,
        "version": VERSION,
        "transformers": transformers.__version__,
        "class": type(model).__name__,
        "config": config_values(config),
        "attention": attention if attention in TORCHS_OWN["attention"] else None,
        "implementations": implementations(model),
        "seen_lengths": seen_lengths(model),
        "absent": [],
        "heads": {
            path: asdict(module.finegates_heads)
            for path, module in model.named_modules()
            if hasattr(module, "finegates_heads")
        },
        "experts": {
            path: module.finegates_width[0]
            for path, module in model.named_modules()
            if hasattr(module, "finegates_width")
        },
        **({"stream": list(getattr(model, MARK))} if hasattr(model, MARK) else {}),
        **descriptions_of(model),
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


def bare_model(structure: dict[str, Any], model: nn.Module) -> nn.Module:
    """Builds the model of a structure on the meta device; records absent modules.

    Args:
        structure: from :func:`parts_of`; absent modules are added to it.
        model: the model itself, of any class.

    Raises:
        ValueError: the configuration does not describe a model that could be loaded.
    """
    try:
        empty = _bounded(structure, sum(1 for _ in named_tensors(model)), type(model))
        structure["absent"] = absent_modules(model, empty)
        drop_modules(empty, structure["absent"])
        set_seen_lengths(empty, structure["seen_lengths"])
    except Exception as error:  # a configuration may have any values
        raise ValueError(
            f"the configuration of {type(model).__name__} does not describe a model that could be "
            f"loaded: {error}"
        ) from error
    return empty


def _bounded(
    structure: Mapping[str, Any], tensors: int, model_class: type[nn.Module] | None = None
) -> nn.Module:
    """Builds the model of a structure, unless it is far larger than its tensors."""
    check_numbers(structure["config"])
    # A compact layer had two parameters and has at least one tensor.
    with at_most_parameters(4 * tensors + 64):
        return empty_model(dict(structure), model_class)


def rebuilt(
    structure: Mapping[str, Any],
    stored: dict[str, Tensor],
    *,
    copy: bool = True,
    products: bool = False,
) -> nn.Module:
    """Rebuilds a model from its structure and tensors.

    Args:
        structure: from :func:`describe`, with ``aliases``.
        stored: from :func:`finegates.formats.tensors.unique_tensors`.
        copy: copy the tensors.
        products: restore the choice of matmuls made on a machine like this one.

    Raises:
        ValueError: they are inconsistent, or a size is larger than any model's.
    """
    try:
        model = _bounded(structure, len(stored) + len(structure["aliases"]))
        set_seen_lengths(model, structure["seen_lengths"])
    except Exception as error:  # the configuration may be invalid in any way
        raise ValueError(
            unregistered(structure) or f"{STRUCTURE} does not describe a model: {error}"
        ) from error
    set_generation(model, structure.get("generation_config"))
    fill(model, stored, structure["aliases"], copy=copy)
    take_products(model, structure.get("products", {}), take=products)
    return model


def read_structure(folder: Path) -> dict[str, Any]:
    """Reads the structure in a folder.

    Raises:
        CompactFormatError: it is missing, corrupt, or not of this format.
    """
    structure = read_description(folder, FORMAT, VERSION, CompactFormatError)
    for key, kind in _REQUIRED.items():
        if not isinstance(structure.get(key), kind):
            raise CompactFormatError(
                folder, f"{STRUCTURE}: {key!r} is missing or not a {kind.__name__}"
            )
    for key, kind in _OPTIONAL.items():
        if not isinstance(structure.get(key, kind()), kind):
            raise CompactFormatError(folder, f"{STRUCTURE}: {key!r} is not a {kind.__name__}")
    for key in ("joined", "absent"):
        if not all(isinstance(path, str) for path in structure[key]):
            raise CompactFormatError(folder, f"{STRUCTURE}: {key!r} is not a list of paths")
    try:
        class_of(structure)
    except ValueError as error:
        raise CompactFormatError(folder, str(error)) from None
    return structure


def as_written(structure: dict[str, Any]) -> dict[str, Any]:
    """A structure as it is read back after writing."""
    found: dict[str, Any] = parse_json(json.dumps(structure))
    return found


def _check_tensors(model: nn.Module, empty: nn.Module) -> None:
    """Raises ValueError unless the rebuilt model would have the model's tensors."""
    mine, theirs = dict(named_tensors(model)), dict(named_tensors(empty))
    differing = sorted(
        name
        for name, tensor in mine.items()
        if name not in theirs or theirs[name].shape != tensor.shape
    ) + sorted(theirs.keys() - mine.keys())
    if differing:
        raise ValueError(
            f"{type(model).__name__} and its configuration do not give the tensors "
            f"{', '.join(differing[:3])}{' ...' if len(differing) > 3 else ''} of this model; "
            "such a model could not be loaded"
        )
