"""Imports gates of the FineGates adapter proposed for ``peft``.

The proposal (huggingface/peft pull request 3517) has two vectors per layer, ``finegates_rows``
(out,) and ``finegates_columns`` (in,): latents a of the gate clip(tanh(a) + 1/2, 0, 1), which is
the preset ``reference``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from finegates.adapters import unwrap
from finegates.gates.attachment import attach_gates
from finegates.gates.gate import Gate
from finegates.gates.gated_linear import gated_layers
from finegates.gates.shared import Sides
from finegates.gates.stochastic import StochasticGate
from finegates.modules.linear import linear_shape

ADAPTER_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEYS = {"finegates_rows": "rows", "finegates_columns": "cols"}


class PeftGatesError(ValueError):
    """An adapter file does not fit the model."""


@torch.no_grad()
def attach_from_peft(model: nn.Module, source: str | Path | Mapping[str, Tensor]) -> nn.Module:
    """Attaches gates of the FineGates adapter of ``peft``, in place.

    Other tensors of the adapter (a trained task head) are written into the model. If a tensor does
    not fit, the model does not change.

    Args:
        model: the base model that the adapter was trained on, without gates.
        source: the adapter's folder, its ``adapter_model.safetensors``, or its tensors by name.

    Returns:
        the same model, ready for :func:`finegates.compact`.

    Raises:
        PeftGatesError: the file is missing or has no gates, a layer is missing in the model or not
            linear-like, a size is wrong, one vector of a pair is missing, or the model does not
            have a tensor.
        ValueError: the model has gates already.
    """
    inner = unwrap(model)
    if gated_layers(inner):
        raise ValueError("the model has gates already; call finegates.detach first")
    latents: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for name, tensor in _read(source).items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise PeftGatesError(f"tensor {name!r} of the adapter has values that are not finite")
        path, key = _split(name)
        if key in _KEYS:
            latents.setdefault(path, {})[_KEYS[key]] = tensor
        else:
            others[f"{path}.{key}"] = tensor
    if not latents:
        raise PeftGatesError(
            f"no {' or '.join(_KEYS)} among the adapter's tensors; is it a FineGates adapter?"
        )
    sides: Sides = {path: _gates(inner, path, found) for path, found in latents.items()}
    parameters = dict(inner.named_parameters())
    for name, tensor in others.items():
        if name not in parameters:
            raise PeftGatesError(f"tensor {name!r} of the adapter is not in the model")
        if parameters[name].shape != tensor.shape:
            raise PeftGatesError(
                f"tensor {name!r} has shape {tuple(tensor.shape)}, the model's has "
                f"{tuple(parameters[name].shape)}"
            )
    attach_gates(inner, sides)  # raises before any change
    for name, tensor in others.items():
        parameters[name].copy_(tensor)
    return model


def _read(source: str | Path | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if isinstance(source, Mapping):
        return source
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(source)
    path = path / ADAPTER_FILE if path.is_dir() else path
    if not path.is_file():
        raise PeftGatesError(f"{path} does not exist; adapters are saved as {ADAPTER_FILE}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise PeftGatesError(f"{path} cannot be read: {error}") from error


def _split(name: str) -> tuple[str, str]:
    """Module path in the plain model and the tensor's name, without adapter names."""
    path, _, key = name.removeprefix(_PREFIX).rpartition(".")
    # A bias that peft trained is stored under the wrapped base layer.
    path = path.removesuffix(".base_layer")
    parent, _, above = path.rpartition(".")
    # In a state dict that peft did not save, the adapter's name follows the key.
    return (parent, above) if above in _KEYS else (path, key)


def _gates(model: nn.Module, path: str, found: dict[str, Tensor]) -> tuple[Gate, Gate]:
    try:
        columns, outputs = linear_shape(model.get_submodule(path))
    except AttributeError:
        raise PeftGatesError(f"the model has no layer {path!r}") from None
    except TypeError as error:
        raise PeftGatesError(f"layer {path!r}: {error}") from None
    device = next(model.parameters()).device
    made = []
    for side, size in (("rows", outputs), ("cols", columns)):
        if side not in found:
            raise PeftGatesError(f"layer {path!r} has gates on one side only; {side} are missing")
        if found[side].shape != (size,):
            raise PeftGatesError(
                f"layer {path!r}: {side} have shape {tuple(found[side].shape)}, the model needs "
                f"({size},)"
            )
        gate = StochasticGate(size, "reference", generator=torch.Generator(), device=device)
        gate.latent.copy_(found[side])
        made.append(gate)
    return made[0], made[1]
