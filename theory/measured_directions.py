"""Flat directions of a transformer block, measured through ``finegates.attach``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import finegates as fg
from finegates.adapters import adapter_for, unwrap
from theory.block_models import WIDTH, block_model, block_output
from theory.factor_directions import factor_directions, start_directions
from theory.flatness import (
    Nullity,
    flat_space,
    jacobian,
    nullity,
)
from theory.free_gates import FreeGate, free_gates, set_values

PRESETS = {"independent": "reference", "shared": "structured"}
"""Presets of the library, by the placement of their gates."""


@dataclass(frozen=True)
class Measured:
    """A block with gates or low-rank factors, at a random point.

    Attributes:
        nullity: of the Jacobian of its outputs.
        predicted: dim N of :func:`theory.flatness.flat_space`, or
            :func:`theory.factor_directions.factor_directions`.
        moved: relative change of the outputs when the gates move far in a random direction of N.
        layers: number of linear layers with gates or factors.
    """

    nullity: Nullity
    predicted: int
    moved: float
    layers: int


def gated_block(
    name: str, preset: str, width: int = WIDTH, seed: int = 0
) -> tuple[nn.Module, list[FreeGate]]:
    """A random block with free gates around 1, as ``finegates.attach`` places them.

    Args:
        name: a key of ``KINDS``.
        preset: of the library.
        width: see :func:`theory.block_models.block_model`.
        seed: of weights and gates.
    """
    model = block_model(name, width, seed=seed)
    fg.attach(model, fg.GateConfig(preset=preset, train_head=False))
    gates = free_gates(model.eval())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for gate in gates:
        gate.values.requires_grad_(True)
        gate.values.data.uniform_(0.5, 1.5, generator=generator)
    return model, gates


def rows_for(size: int, model: nn.Module) -> int:
    """Number of sequences of 9 tokens that give three times as many outputs as parameters."""
    config: Any = unwrap(model).config
    width: int = config.hidden_size
    return -(-3 * size // (9 * width))


@lru_cache(maxsize=256)
def measured_gates(name: str, placed: str, width: int, seed: int) -> Measured:
    """Predicted and measured flat directions of a block with gates.

    Args:
        name: a key of ``KINDS``.
        placed: a key of ``PRESETS``.
        width: see :func:`theory.block_models.block_model`.
        seed: of weights, gates and tokens.
    """
    model, gates = gated_block(name, PRESETS[placed], width, seed)
    parameters = [gate.values for gate in gates]
    size = sum(gate.size for gate in gates)
    output = partial(block_output, model, rows_for(size, model), seed=seed)
    found = nullity(jacobian(output, parameters, seed))
    basis = flat_space(model)
    random = np.random.default_rng(seed).standard_normal(len(basis))
    layers = len(adapter_for(model).gated(model))
    return Measured(found, len(basis), _moved(model, gates, random @ basis), layers)


@torch.no_grad()
def _moved(model: nn.Module, gates: list[FreeGate], direction: np.ndarray) -> float:
    """Relative change of the outputs when log gates move far in a direction, at most 1."""
    start = torch.cat([gate.values.detach() for gate in gates])
    before = block_output(model, 2)
    step = torch.as_tensor(direction / np.abs(direction).max())
    set_values(gates, start * torch.exp(step))
    change = (block_output(model, 2) - before).abs().max() / before.abs().max()
    set_values(gates, start)
    return float(change)


def factored_block(
    name: str, rank: int, width: int, seed: int, *, start: bool = False
) -> tuple[nn.Module, list[Tensor]]:
    """A random block with LoRA's factors on the layers that gates would wrap.

    Args:
        name: a key of ``KINDS``.
        rank: r.
        width: see :func:`theory.block_models.block_model`.
        seed: of weights and factors.
        start: B = 0, as at LoRA's start; otherwise all factors are random.
    """
    wrapped = fg.add_lora(block_model(name, width, seed=seed), rank=rank, alpha=float(rank))
    generator = torch.Generator().manual_seed(seed)
    factors: list[Tensor] = []
    for path, parameter in wrapped.double().eval().named_parameters():
        parameter.requires_grad_("lora_" in path)
        if "lora_" in path:
            factors.append(parameter)
            parameter.data.normal_(0.0, 0.3, generator=generator)
            if start and "lora_B" in path:
                parameter.data.zero_()
    return unwrap(wrapped), factors


@lru_cache(maxsize=256)
def measured_factors(
    name: str, rank: int, width: int, seed: int, *, start: bool = False
) -> Measured:
    """Flat directions of LoRA's factors; the arguments are those of :func:`factored_block`."""
    model = block_model(name, width, seed=seed)
    layers = len(adapter_for(model).gated(model))
    predicted = (start_directions if start else factor_directions)(model, rank)
    plain, factors = factored_block(name, rank, width, seed, start=start)
    size = sum(factor.numel() for factor in factors)
    output = partial(block_output, plain, rows_for(size, plain), seed=seed)
    matrix = jacobian(output, factors, seed, logarithmic=not start)
    return Measured(nullity(matrix), predicted, 0.0, layers)
