"""Hypothesis strategies for layers with exact arithmetic, and for ordinary layers.

Exact: integer weights, biases and inputs, and gates k/8. A product then has a granularity of 2^-6
per layer. The sizes below keep every partial sum of a layer (float32), of a pair (float32) and of a
chain of three (float64) within the significand, in any order of summation.
"""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from finegates.gates.gate import FixedGate
from finegates.gates.gated_linear import GatedLinear

SIZES = st.integers(1, 8)
EXACT_DTYPES = st.sampled_from([torch.float32, torch.float64])


def integers(shape: tuple[int, ...], largest: int, dtype: torch.dtype) -> st.SearchStrategy[Tensor]:
    """Integer-valued tensors in [-largest, largest]."""
    return arrays(np.int64, shape, elements=st.integers(-largest, largest)).map(
        lambda values: torch.from_numpy(values).to(dtype)
    )


def gaussians(shape: tuple[int, ...], dtype: torch.dtype) -> st.SearchStrategy[Tensor]:
    """Standard normal tensors, from a drawn seed."""
    return st.integers(0, 2**32 - 1).map(
        lambda seed: torch.randn(
            shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        ).to(dtype)
    )


def gate_values(size: int, steps: int = 8) -> st.SearchStrategy[Tensor]:
    """Gates k/steps: arbitrary, none closed, all closed, all but one closed, or one closed."""
    fractions = arrays(np.int64, size, elements=st.integers(0, steps))
    position = st.integers(0, size - 1)

    def with_one(rest: float, value: float) -> st.SearchStrategy[Tensor]:
        return position.map(
            lambda at: torch.full((size,), rest).index_fill(0, torch.tensor([at]), value)
        )

    return st.one_of(
        fractions.map(lambda k: torch.from_numpy(k).to(torch.float32) / steps),
        st.just(torch.ones(size)),
        st.just(torch.zeros(size)),
        with_one(0.0, 1.0),
        with_one(0.5, 0.0),
    )


def gates(size: int, steps: int = 8) -> st.SearchStrategy[FixedGate | None]:
    """A constant gate, or None."""
    return st.one_of(st.none(), gate_values(size, steps).map(FixedGate))


@st.composite
def gated_layers(
    draw: st.DrawFn,
    outputs: int,
    columns: int,
    dtype: torch.dtype,
    *,
    largest: int | None = 2,
    steps: int = 8,
) -> GatedLinear:
    """A layer with or without bias, row gates, column gates; Gaussian if ``largest`` is None."""

    def numbers(*shape: int) -> Tensor:
        return draw(gaussians(shape, dtype) if largest is None else integers(shape, largest, dtype))

    base = nn.Linear(columns, outputs, bias=draw(st.booleans()), dtype=dtype)
    base.weight.data = numbers(outputs, columns)
    if base.bias is not None:
        base.bias.data = numbers(outputs)
    return GatedLinear(base, draw(gates(outputs, steps)), draw(gates(columns, steps)))
