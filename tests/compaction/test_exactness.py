"""Law: a compact model computes the same function as the gated one in evaluation mode.

Equality is bit for bit where arithmetic is exact, and within the derived bound of ``tolerance``
elsewhere.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from finegates.compaction import CompactLinear, compact
from finegates.gates.attachment import attach
from finegates.gates.config import GateConfig
from finegates.gates.gate import FixedGate
from finegates.gates.gated_linear import GatedLinear
from support import strategies, tiny
from support.tolerance import linear_bound, model_bound


@given(st.data(), strategies.EXACT_DTYPES, strategies.SIZES, strategies.SIZES)
def test_layer_exact(data: st.DataObject, dtype: torch.dtype, outputs: int, columns: int) -> None:
    layer = data.draw(strategies.gated_layers(outputs, columns, dtype, largest=8))
    x = data.draw(strategies.integers((3, columns), 8, dtype))
    small = compact(layer)
    for gradients in (True, False):  # without gradients the matmul takes another code path
        with torch.set_grad_enabled(gradients):
            assert torch.equal(small(x), layer.eval()(x))
            assert small(x).dtype == dtype


@given(st.data(), strategies.SIZES)
def test_layer_exact_bfloat16(data: st.DataObject, outputs: int) -> None:
    # Eight bits: gates k/2, up to four columns, |w|, |x| <= 2; sums below 2^8 quarters.
    columns = data.draw(st.integers(1, 4))
    layer = data.draw(strategies.gated_layers(outputs, columns, torch.bfloat16, largest=2, steps=2))
    x = data.draw(strategies.integers((3, columns), 2, torch.bfloat16))
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert torch.equal(compact(layer)(x), layer.eval()(x))


@given(
    st.data(),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    strategies.SIZES,
    st.integers(1, 24),
)
def test_layer_bounded(data: st.DataObject, dtype: torch.dtype, outputs: int, columns: int) -> None:
    layer = data.draw(strategies.gated_layers(outputs, columns, dtype, largest=None))
    x = data.draw(strategies.gaussians((3, columns), dtype))
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            difference = (compact(layer)(x) - layer.eval()(x)).abs().double()
        assert (difference <= linear_bound(layer, x)).all()


@given(st.data(), strategies.EXACT_DTYPES, strategies.SIZES, strategies.SIZES, strategies.SIZES)
def test_pair_exact(
    data: st.DataObject, dtype: torch.dtype, columns: int, middle: int, outputs: int
) -> None:
    pair = tiny.Pair(
        data.draw(strategies.gated_layers(middle, columns, dtype)),
        data.draw(strategies.gated_layers(outputs, middle, dtype)),
        "relu",
    )
    x = data.draw(strategies.integers((3, columns), 3, dtype))
    small = compact(pair, adapter=tiny.PairAdapter("relu"))
    assert torch.equal(small(x), pair.eval()(x))
    dead = ~_open(pair.up.rows, middle) | ~_open(pair.down.cols, middle)
    dead |= ~_open(pair.down.rows, outputs).any()  # nothing reads the pair then
    assert small.up.weight.shape[0] == small.down.weight.shape[1] == int((~dead).sum())
    assert small.up.rows is None
    assert small.down.cols is None


@given(st.data(), strategies.SIZES, strategies.SIZES, strategies.SIZES)
def test_pair_with_gate_projection_exact(
    data: st.DataObject, columns: int, middle: int, outputs: int
) -> None:
    dtype = torch.float64
    pair = tiny.Pair(
        data.draw(strategies.gated_layers(middle, columns, dtype)),
        data.draw(strategies.gated_layers(outputs, middle, dtype)),
        "relu",
        data.draw(strategies.gated_layers(middle, columns, dtype)),
    )
    x = data.draw(strategies.integers((3, columns), 3, dtype))
    small = compact(pair, adapter=tiny.PairAdapter("relu", gated=True))
    assert torch.equal(small(x), pair.eval()(x))
    assert small.up.weight.shape[0] == small.gate.weight.shape[0] == small.down.weight.shape[1]


@given(st.data(), strategies.SIZES, strategies.SIZES, strategies.SIZES)
def test_closed_gate_projection_that_is_not_zero_stays(
    data: st.DataObject, columns: int, middle: int, outputs: int
) -> None:
    """sigmoid(0) * up varies with up, so a closed row of ``gate`` removes nothing."""
    dtype = torch.float64
    up = data.draw(strategies.gated_layers(middle, columns, dtype))
    up.rows = None
    gate = data.draw(strategies.gated_layers(middle, columns, dtype))
    gate.rows = FixedGate(torch.zeros(middle))
    down = data.draw(strategies.gated_layers(outputs, middle, dtype))
    pair = tiny.Pair(up, down, "sigmoid", gate).eval()
    x = data.draw(strategies.integers((3, columns), 3, dtype))
    small = compact(pair, adapter=tiny.PairAdapter("sigmoid", gated=True))
    assert torch.equal(small(x), pair(x))


@given(st.data(), strategies.SIZES, strategies.SIZES, strategies.SIZES, st.booleans())
def test_pair_with_half_at_zero_is_bounded(
    data: st.DataObject, columns: int, middle: int, outputs: int, every_row: bool
) -> None:
    """sigmoid(0) = 1/2 is folded into the bias of ``down``, which is created if missing."""
    dtype = torch.float64
    up = data.draw(strategies.gated_layers(middle, columns, dtype))
    if every_row:
        up.rows = FixedGate(torch.zeros(middle))
    down = data.draw(strategies.gated_layers(outputs, middle, dtype))
    pair = tiny.Pair(up, down, "sigmoid").eval()
    x = data.draw(strategies.integers((3, columns), 3, dtype))
    small = compact(pair, adapter=tiny.PairAdapter("sigmoid"))
    if every_row:  # only halves: exact
        assert torch.equal(small(x), pair(x))
        return
    # ``up`` is exact on integers, so both have the same hidden values; only ``down`` rounds.
    bound = linear_bound(down, torch.sigmoid(up(x)))
    assert ((small(x) - pair(x)).abs() <= bound).all()


@given(st.data(), st.lists(strategies.SIZES, min_size=4, max_size=4))
def test_chain_exact(data: st.DataObject, widths: list[int]) -> None:
    dtype = torch.float64
    layers: list[nn.Module] = []
    for columns, outputs in pairwise(widths):
        layers += [data.draw(strategies.gated_layers(outputs, columns, dtype)), nn.ReLU()]
    chain = nn.Sequential(*layers).eval()
    x = data.draw(strategies.integers((2, 3, widths[0]), 3, dtype))
    expected = chain(x)
    small = compact(chain)
    assert torch.equal(small(x), expected)
    again = compact(small)
    assert torch.equal(again(x), expected)
    assert torch.equal(compact(copy.deepcopy(chain), inplace=True)(x), expected)
    assert sum(isinstance(m, CompactLinear) for m in again.modules()) == 3
    assert not any(isinstance(m, GatedLinear) for m in small.modules())
    assert any(isinstance(m, GatedLinear) for m in chain.modules()), "the given model is kept"


@given(st.data(), strategies.SIZES, strategies.SIZES, strategies.SIZES)
def test_one_ungated_side_of_a_pair(
    data: st.DataObject, columns: int, middle: int, outputs: int
) -> None:
    dtype = torch.float64
    gated = data.draw(strategies.gated_layers(middle, columns, dtype))
    plain = data.draw(strategies.gated_layers(outputs, middle, dtype)).base
    x = data.draw(strategies.integers((3, columns), 3, dtype))
    pair = tiny.Pair(gated, plain, "relu").eval()
    small = compact(pair, adapter=tiny.PairAdapter("relu"))
    assert torch.equal(small(x), pair(x))
    if bool(_open(gated.rows, middle).all()):
        assert isinstance(small.down, nn.Linear), "a layer that loses nothing stays as it is"
    else:
        assert small.down.weight.shape[1] == small.up.weight.shape[0] < middle


@given(st.data(), strategies.SIZES, strategies.SIZES)
def test_shared_gates(data: st.DataObject, columns: int, outputs: int) -> None:
    first = data.draw(strategies.gated_layers(outputs, columns, torch.float32))
    second = data.draw(strategies.gated_layers(outputs, columns, torch.float32))
    second.rows, second.cols = first.rows, first.cols
    both = nn.ModuleList([first, second, first]).eval()
    small = compact(both)
    x = data.draw(strategies.integers((3, columns), 3, torch.float32))
    for mine, theirs in zip(small, both, strict=True):
        assert torch.equal(mine(x), theirs(x))
    assert small[0] is small[2], "a layer used twice stays one layer"


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@given(seed=st.integers(0, 2**16))
@settings(max_examples=5)  # one derivative for every output number: a second each
def test_whole_model_bounded(architecture: str, seed: int) -> None:
    model = tiny.tiny_model(architecture, seed=seed)
    attach(model, GateConfig(preset="reference"))
    tiny.scatter_gates(model, seed)
    model.eval()
    inputs = tiny.tokens(seed=seed)
    bound = model_bound(model, lambda m: tiny.output(m, inputs))
    small = compact(model)
    difference = (tiny.output(small, inputs) - tiny.output(model, inputs)).abs()
    assert (difference <= bound).all()
    # Not vacuous: the bound is far below any real difference.
    assert float(bound.max()) < 1e-9


def _open(gate: FixedGate | None, size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.bool) if gate is None else ~gate.closed()
