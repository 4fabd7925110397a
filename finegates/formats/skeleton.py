"""Rebuilds an empty model from a stored structure, rejecting inconsistent ones."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import nn

from finegates.adapters import (
    Attention,
    FeedForward,
    HeadSizes,
    adapter_for,
    attentions,
)
from finegates.adapters.stream_parts import reading_and_writing
from finegates.formats.absent import drop_modules
from finegates.formats.implementations import TORCHS_OWN, set_implementations
from finegates.head_rows import head_rows, letters_of
from finegates.modules.compact_linear import CompactLinear
from finegates.modules.experts import empty_experts
from finegates.modules.linear import linear_shape
from finegates.modules.narrow_stream import narrow_stream

# Numbers that JSON does not have, as transformers 5 writes them.
_FLOAT = "__float__"
_FLOATS = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


def class_of(structure: dict[str, Any]) -> type[nn.Module]:
    """Looks up a class in the auto-model tables of transformers by its configuration.

    The tables include classes that this process registered.

    Raises:
        ValueError: the tables do not list the class for this type, or the type is not a name.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    name, model_type = structure["class"], structure["config"].get("model_type")
    if not isinstance(model_type, str):
        raise ValueError(f"the configuration's model_type is {model_type!r}, not a name")
    for table, mapping in vars(modeling_auto).items():
        if not table.startswith("MODEL_") or not table.endswith("MAPPING_NAMES"):
            continue
        listed = mapping.get(model_type, ())
        if name in ((listed,) if isinstance(listed, str) else listed):
            found = getattr(transformers, name)
            assert isinstance(found, type)
            assert issubclass(found, nn.Module)
            return found
    own = registered_class(model_type, name)
    if own is not None:
        return own
    raise ValueError(
        f"class {name!r} is not a model that transformers knows for type {model_type!r}, so it is "
        "not loaded; a class of your own must be registered before, with AutoConfig.register and "
        "AutoModel.register of transformers (on the command line, in a file given by --specs)"
    )


def registered_class(model_type: str, name: str) -> type[nn.Module] | None:
    """The class that ``AutoModel.register``, or another auto-class, got in this process.

    Args:
        model_type: of its configuration, which ``AutoConfig.register`` got.
        name: of the class.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto

    if model_type not in CONFIG_MAPPING:
        return None
    config: Any = CONFIG_MAPPING[model_type]
    for mapping in vars(modeling_auto).values():
        # Only what was registered: looking up the others would import their modules.
        found = getattr(mapping, "_extra_content", {}).get(config, ())
        for each in found if isinstance(found, tuple) else (found,):
            if isinstance(each, type) and each.__name__ == name and issubclass(each, nn.Module):
                return each
    return None


def empty_model(structure: dict[str, Any], model_class: type[nn.Module] | None = None) -> nn.Module:
    """Builds the model on the meta device, with its compact layers.

    Args:
        structure: the stored description of the model.
        model_class: its class; by default the class of transformers that the structure names.

    Raises:
        ValueError: class, heads, fused parts or sizes are inconsistent.
    """
    from transformers import CONFIG_MAPPING

    model_class = model_class or class_of(structure)
    values = _without_code(structure["config"])
    model_type = values["model_type"]
    own = getattr(model_class, "config_class", None)
    # A class of the user that the caller has may be unknown to transformers.
    kind: Any = CONFIG_MAPPING[model_type] if own is None or model_type in CONFIG_MAPPING else own
    config = kind.from_dict(values)
    if structure.get("attention") in TORCHS_OWN["attention"]:
        config._attn_implementation = structure["attention"]
    with torch.device("meta"):
        try:
            model = model_class(config)
        except ValueError:  # a model inside does not have this function; each gets its own below
            config._attn_implementation = "eager"
            model = model_class(config)
    _without_numbers(model)
    set_implementations(model, structure["implementations"])
    drop_modules(model, structure["absent"])
    if "stream" in structure:
        _narrow_stream(model, structure["stream"], structure["layers"])
    # Not on the meta device: index buffers that follow from sizes get their values here, and fill
    # compares the stored ones with them.
    heads = {path: _sizes(values) for path, values in structure["heads"].items()}
    narrowed = _narrow(model, heads)
    joined = _join(model, structure["joined"])
    for path, width in structure.get("experts", {}).items():
        if type(width) is not int:
            raise ValueError(f"{path} has experts of width {width!r}, which is not a number")
        model.set_submodule(path, empty_experts(model.get_submodule(path), width))
    with torch.device("meta"):
        for path, values in structure["layers"].items():
            dense = model.get_submodule(path)
            shape = tuple(values["dense_shape"])
            if linear_shape(dense) != (shape[1], shape[0]):
                raise ValueError(f"layer {path} does not have the dense shape {shape}")
            model.set_submodule(path, _empty_layer(values))
    for attention, sizes in narrowed:
        _check_head_layers(model, attention, sizes)
    for feed in joined:
        _check_joined(model, feed)
    return model


def _without_numbers(model: nn.Module) -> None:
    """Moves parameters to the meta device that ``torch.Tensor(size)`` made, which is on the CPU."""
    empty: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not parameter.is_meta:
                if parameter not in empty:
                    empty[parameter] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
                module._parameters[name] = empty[parameter]


def _narrow_stream(model: nn.Module, sizes: Any, layers: dict[str, Any]) -> None:
    """Removes dimensions of the residual stream, given (kept, dense)."""
    kept, size = sizes
    adapter = adapter_for(model)
    stream = adapter.stream(model)
    if type(kept) is not int or not 0 < kept <= size or size != stream.size:
        raise ValueError(f"the residual stream of size {stream.size} cannot have the sizes {sizes}")
    reads, writes = reading_and_writing(adapter.blocks(model))
    for key, paths in (("in_features", reads), ("out_features", writes)):
        for path in paths:
            if path in layers and layers[path][key] != kept:
                raise ValueError(
                    f"layer {path} has {key} {layers[path][key]}, the residual stream has {kept}"
                )
    narrow_stream(model, stream, torch.arange(kept, device="cpu"))


def _narrow(model: nn.Module, heads: dict[str, HeadSizes]) -> list[tuple[Attention, HeadSizes]]:
    """Narrows the attentions at these paths; returns them."""
    if not heads:
        return []
    adapter = adapter_for(model)
    known, found = attentions(adapter, model), []
    for path, sizes in heads.items():
        if path not in known:
            raise ValueError(f"{path} is not an attention of the model")
        sizes.check(known[path])
        narrowed = adapter.narrow(model.get_submodule(path), known[path], sizes)
        model.set_submodule(path, narrowed)
        found.append((known[path], sizes))
    return found


def _join(model: nn.Module, paths: list[str]) -> list[FeedForward]:
    """Fuses gate and up in the feed-forward parts at these paths; returns them."""
    if not paths:
        return []
    adapter = adapter_for(model)
    feeds = (block.feed_forward for block in adapter.blocks(model))
    known = {feed.path: feed for feed in feeds if feed is not None and feed.path is not None}
    for path in paths:
        if path not in known:
            raise ValueError(f"{path} is not a feed-forward part whose gate and up can be joined")
        model.set_submodule(path, adapter.join(model.get_submodule(path)))
    return [known[path] for path in paths]


def _check_joined(model: nn.Module, feed: FeedForward) -> None:
    """Raises ValueError unless gate and up each have as many outputs as down inputs."""
    outputs = _features(model.get_submodule(f"{feed.path}.gate_up"))[1]
    inputs = _features(model.get_submodule(feed.down))[0]
    if outputs != 2 * inputs:
        raise ValueError(
            f"layer {feed.path}.gate_up has {outputs} outputs, {feed.down} needs twice {inputs}"
        )


def _check_head_layers(model: nn.Module, part: Attention, sizes: HeadSizes) -> None:
    """Raises ValueError unless the projections have the sizes that the heads need."""
    rows = head_rows(part.layout, len(sizes.heads), len(sizes.kv_heads), sizes.width)
    expected = {
        path: sum(rows[letter].numel() for letter in letters_of(part, path))
        for path in (part.q, part.k, part.v)
    }
    if sizes.fused:
        joint = sum(expected.pop(path) for path in part.joint_linears())
        expected[part.joint_path] = joint
    queries = len(sizes.heads) * sizes.width
    for path, size in expected.items():
        if (found := _features(model.get_submodule(path))[1]) != size:
            raise ValueError(f"layer {path} has {found} outputs, its heads need {size}")
    if (found := _features(model.get_submodule(part.o))[0]) != queries:
        raise ValueError(f"layer {part.o} has {found} inputs, its heads give {queries}")


def _features(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, CompactLinear):
        return layer.in_features, layer.out_features
    return linear_shape(layer)


def _sizes(values: dict[str, Any]) -> HeadSizes:
    """Head sizes from plain values, with lists as tuples."""
    if values.get("pairs") is not None:
        values = {**values, "pairs": tuple(map(tuple, values["pairs"]))}
    frozen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return HeadSizes(**frozen)


def _empty_layer(sizes: dict[str, Any]) -> CompactLinear:
    kept_out, kept_in = sizes["kept_out"], sizes["kept_in"]
    return CompactLinear(
        torch.empty(kept_out, kept_in, dtype=torch.float32, device="meta"),
        torch.empty(kept_out, dtype=torch.float32, device="meta") if sizes["bias"] else None,
        in_features=sizes["in_features"],
        out_features=sizes["out_features"],
        cols=torch.empty(kept_in, dtype=torch.int64, device="meta") if sizes["gather"] else None,
        rows=torch.empty(kept_out, dtype=torch.int64, device="meta") if sizes["scatter"] else None,
        dense_shape=(sizes["dense_shape"][0], sizes["dense_shape"][1]),
    )


def config_values(config: Any) -> Any:
    """A configuration's values for JSON, including numbers that are not finite."""
    return _named_floats(json.loads(json.dumps(config.to_dict())))


def _named_floats(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _named_floats(value) for key, value in values.items()}
    if isinstance(values, list):
        return [_named_floats(value) for value in values]
    if isinstance(values, float) and not math.isfinite(values):
        return {_FLOAT: next(n for n, v in _FLOATS.items() if str(v) == str(values))}
    return values


def _without_code(config: Any) -> Any:
    """A configuration of :func:`config_values` without keys that request remote code."""
    if isinstance(config, dict):
        if config.keys() == {_FLOAT} and config[_FLOAT] in _FLOATS:
            return _FLOATS[config[_FLOAT]]
        return {
            key: _without_code(value)
            for key, value in config.items()
            if key not in ("auto_map", "custom_pipelines") and not key.endswith("_implementation")
        }
    return [_without_code(value) for value in config] if isinstance(config, list) else config
