"""Flat directions of gates in a transformer block: rescalings that change no output.

**Proposition.** Let all gates of a block be non-zero, and number its *sides*: a row and a column
entry for every output and input of every linear layer y = r ∘ (W (c ∘ x) + b), gated or not. Let S
be the span of these vectors over the sides, in logarithms of the gates (an entry a means that the
side is multiplied by t^a):

1. *values*: for every value dimension, +1 on its row of v, −1 on its columns of o in every query
   head that reads it. Attention weights mix tokens, not dimensions, so only r_v c_o enters.
2. *scores*: for every dimension of keys, +1 on its row of k, −1 on its rows of q. Scores are sums
   of products r_q r_k. Rotated pairs share one generator, since a rotation commutes with scaling a
   pair and with no other scaling. Excluded if queries and keys are normalised.
3. *hidden*: for every feed-forward dimension, +1 on its row of up, −1 on its column of down, if up
   enters linearly (a gate projection) or through an activation that is positively homogeneous of
   degree k (then −k on the column). With a gate projection and such an activation also +1 on the
   row of gate.
4. *layers*: for a layer without a bias, +1 on all rows, −1 on all columns. Also for keys with a
   bias, if nothing depends on the position of a key: softmax ignores a term that all keys share.

Let the gates p of a model set its sides by log side = A log p, with A a matrix of zeros and ones:
the identity for independent gates, one column with several ones for a shared gate, two ones in a
row for a product of gates, and rows of zeros for sides without a gate. Then at any p > 0 the output
is constant along every δ of the subspace

    N = {δ : A δ ∈ S},    so that the Jacobian of the outputs has nullity at least dim N,

for any weights, data, loss, depth and other layers of the model.

*Proof.* Each generator leaves the block's output unchanged for every t > 0, as said. Rescalings
commute, so all of exp(S) leaves it unchanged. exp(τδ) p multiplies the sides by exp(τAδ), with
Aδ ∈ S, so the output is constant in τ. Differentiate. ∎

**Corollary.** Independent gates (A = I) have dim N = dim S: at least 2d for an attention block of
width d (d values and d scores) with as many keys as queries, without rotary embeddings and without
norms or clipping of queries and keys; d_ff more with a gate projection. Let v and k have biases and
no row gates of their own, and one column gate, as with the preset ``structured``. Then A δ in S
contains no generator of 1 and 2. On the rows of v and k, A δ is zero, and only these generators
and the keys' generator of 4 are non-zero there. The last moves columns that k shares with v, where
no other generator can compensate, so its coefficient is zero. Each of the others has a row of its
own. Without a shared column gate this is false: q's rows times t and k's columns over t change
nothing. The kernel of A remains: gates of a head against those of its values,
one for each key-value head.

In the kinds of blocks of :mod:`theory.block_models` the measured nullity says more than the
proposition: there are *no other* flat directions. Blocks with more structure than is described have
more, for example those with latents between their projections. There dim N is a lower bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finegates.adapters import Attention, Block, FeedForward, adapter_for
from finegates.gates.gate import Gate
from finegates.gates.gated_linear import leaf_gates
from finegates.head_rows import feed_forward_rows, layer_rows, letters_of, score_units
from finegates.modules.kinds import GatedLayer
from finegates.modules.linear import find_linear, linear_shape
from theory.problems import Array

Places = NDArray[np.integer[Any]]
Side = tuple[str, str]
"""Path of a layer, and ``"rows"`` or ``"cols"``."""


@dataclass(frozen=True)
class Generator:
    """A rescaling that leaves the output unchanged.

    Attributes:
        kind: ``"values"``, ``"scores"``, ``"hidden"`` or ``"layers"``.
        exponents: by side, the power of t that multiplies each entry.
    """

    kind: str
    exponents: dict[Side, Array]


def generators(model: nn.Module, blocks: Sequence[Block] | None = None) -> list[Generator]:
    """The generators of S for all blocks of a model; see the module's docstring.

    Args:
        model: of an architecture with an adapter, with or without gates.
        blocks: those of the adapter if None.
    """
    found: list[Generator] = []
    for block in adapter_for(model).blocks(model) if blocks is None else blocks:
        clipped: set[str] = set()
        for part in block.attentions:
            if clips(model, part):
                clipped |= {part.q, part.k, part.v}
            else:
                found += _of_attention(model, part)
        if block.feed_forward is not None:
            found += _of_feed_forward(model, block.feed_forward)
        for path in block.linears():
            if _bias(model, path) is None and path not in clipped:
                found.append(_of_layer(model, path))
    return found


def clips(model: nn.Module, part: Attention) -> bool:
    """Whether queries, keys and values are clipped, as in OLMo, which breaks every rescaling."""
    config = getattr(model.get_submodule(part.path), "config", None)
    return getattr(config, "clip_qkv", None) is not None


def _of_attention(model: nn.Module, part: Attention) -> Iterator[Generator]:
    if part.projected is not None:
        return
    each = part.heads // part.kv_heads
    rows = layer_rows(part, part.heads, part.kv_heads, part.head_dim)
    entry = np.arange(part.heads * part.head_dim).reshape(part.heads, part.head_dim)
    if not part.value_bias:
        for group in range(part.kv_heads):
            readers = entry[group * each : (group + 1) * each]  # (each, head_dim)
            for dimension, row in enumerate(rows["v"][group].tolist()):
                up = _ones(size_of(model, part.v, "rows"), [row], 1)
                down = _ones(size_of(model, part.o, "cols"), readers[:, dimension], -1)
                yield _generator("values", ((part.v, "rows"), up), ((part.o, "cols"), down))
    if part.norm or part.fixed_scores:
        return
    units = score_units(part).numpy()
    for group in range(part.kv_heads):
        queries = rows["q"][group * each : (group + 1) * each].numpy()  # (each, head_dim)
        for unit in np.unique(units[group]):
            chosen = units[group] == unit
            up = _ones(size_of(model, part.k, "rows"), rows["k"][group].numpy()[chosen], 1)
            down = _ones(size_of(model, part.q, "rows"), queries[:, chosen], -1)
            yield _generator("scores", ((part.k, "rows"), up), ((part.q, "rows"), down))
    alone = letters_of(part, part.k) == ("k",) and _bias(model, part.k) is not None
    if alone and part.rotary is None and not sees_key_positions(model, part):
        yield _of_layer(model, part.k)


def sees_key_positions(model: nn.Module, part: Attention) -> bool:
    """Whether scores have a term in key and position without the query, as in DeBERTa."""
    return "p2c" in getattr(model.get_submodule(part.path), "pos_att_type", ())


def _of_feed_forward(model: nn.Module, part: FeedForward) -> Iterator[Generator]:
    width = size_of(model, part.down, "cols")
    degree = _degree(model, part)
    # By layer and row, the degree of each hidden value in that row's gate.
    sources: list[tuple[str, Places, int]] = []
    if part.gate is None:
        if degree is not None:
            sources.append((part.up, np.arange(width), degree))
    else:
        gate, up = (rows.numpy() for rows in feed_forward_rows(part, width))
        sources.append((part.up, up, 1))
        if degree is not None:
            sources.append((part.gate, gate, degree))
    for path, rows, power in sources:
        for dimension, row in enumerate(rows):
            yield _generator(
                "hidden",
                ((path, "rows"), _ones(size_of(model, path, "rows"), [row], 1)),
                ((part.down, "cols"), _ones(width, [dimension], -power)),
            )


def _degree(model: nn.Module, part: FeedForward) -> int | None:
    """k with phi(2x) = 2^k phi(x), or None; powers of two are exact."""
    from transformers.activations import ACT2FN

    if part.phi is None:
        phi = ACT2FN[part.activation]
    else:
        path, _, name = part.phi.rpartition(".")
        phi = getattr(model.get_submodule(path), name)
    x = torch.tensor([-3.0, -0.25, 0.5, 1.75], dtype=torch.float64)
    for degree in (1, 2):
        if torch.equal(phi(2 * x), 2**degree * phi(x)):
            return degree
    return None


def _of_layer(model: nn.Module, path: str) -> Generator:
    sizes = {side: size_of(model, path, side) for side in ("rows", "cols")}
    return _generator(
        "layers",
        ((path, "rows"), np.ones(sizes["rows"])),
        ((path, "cols"), -np.ones(sizes["cols"])),
    )


def _generator(kind: str, *parts: tuple[Side, Array]) -> Generator:
    exponents: dict[Side, Array] = {}
    for side, values in parts:  # q and k may be rows of one layer
        exponents[side] = exponents.get(side, 0) + values
    return Generator(kind, exponents)


def _ones(size: int, places: Sequence[int] | Places, value: float) -> Array:
    vector = np.zeros(size)
    vector[np.asarray(places).ravel()] = value
    return vector


def layer_of(model: nn.Module, path: str) -> nn.Module:
    """The linear layer at a path, within its gates."""
    module = model.get_submodule(path)
    return find_linear(getattr(module, "base", module))


def _bias(model: nn.Module, path: str) -> object:
    return getattr(layer_of(model, path), "bias", None)


def size_of(model: nn.Module, path: str, side: str) -> int:
    """Number of rows or columns of the linear layer at a path."""
    inputs, outputs = linear_shape(layer_of(model, path))
    return outputs if side == "rows" else inputs


def side_map(model: nn.Module) -> dict[Side, Array]:
    """A by side: (entries of the side, all gates p in the order of ``leaf_gates``).

    Args:
        model: with gates.
    """
    leaves = leaf_gates(model)
    starts = np.cumsum([0, *(leaf.size for leaf in leaves)])
    places = {leaf: slice(a, b) for leaf, a, b in zip(leaves, starts, starts[1:], strict=False)}
    # The log of a product of gates is linear in their logs; read off its slope at p = 1.
    ones = torch.ones(int(starts[-1]), dtype=torch.float64)
    found: dict[Side, Array] = {}
    for path, layer in model.named_modules():
        if not isinstance(layer, GatedLayer):
            continue
        for side in ("rows", "cols"):
            gate: Gate | None = getattr(layer, side)
            if gate is not None:
                slopes = torch.autograd.functional.jacobian(
                    lambda p, gate=gate: gate.combined(lambda leaf: p[places[leaf]]), ones
                )
                found[path, side] = slopes.numpy()
    return found


def flat_space(model: nn.Module, blocks: Sequence[Block] | None = None) -> Array:
    """A basis of N = {δ : A δ ∈ S}, shape (dim N, number of gates), for a model with gates."""
    sides = side_map(model)
    spans = generators(model, blocks)
    sizes = {side: len(rows) for side, rows in sides.items()}
    sizes |= {side: len(values) for span in spans for side, values in span.exponents.items()}
    count = next(iter(sides.values())).shape[1]
    a = np.concatenate([sides.get(side, np.zeros((size, count))) for side, size in sizes.items()])
    s = np.zeros((len(spans), len(a)))
    for row, span in zip(s, spans, strict=True):
        row[:] = _joined(sizes, span.exponents)
    # A δ ∈ S is the kernel of (1 − Π) A, with Π the projector on S.
    left, singular, _ = np.linalg.svd(s.T, full_matrices=False)
    basis = left[:, singular > 1e-9]  # orthonormal basis of S, (sides, dim S)
    outside = a - basis @ (basis.T @ a)  # (1 − Π) A, (sides, gates)
    _, singular, right = np.linalg.svd(outside, full_matrices=True)
    rank = int(np.sum(singular > 1e-9 * np.sqrt(count)))
    return np.asarray(right[rank:], dtype=np.float64)


def _joined(sizes: dict[Side, int], vectors: dict[Side, Array]) -> Array:
    return np.concatenate([vectors.get(side, np.zeros(size)) for side, size in sizes.items()])


@dataclass(frozen=True)
class Nullity:
    """The kernel of a Jacobian.

    Attributes:
        size: number of parameters.
        count: zero singular values.
        gap: the smallest non-zero singular value over the largest zero one, or over rounding error
            if there are no zeros.
    """

    size: int
    count: int
    gap: float


def jacobian(
    output: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    seed: int,
    *,
    logarithmic: bool = True,
) -> Array:
    """Random combinations of the rows of ∂output/∂parameters, with the same rank but few rows.

    Args:
        output: of any shape, float64.
        parameters: float64, with ``requires_grad``.
        seed: of the combinations.
        logarithmic: multiply the entries of parameter p by |p|, which gives the Jacobian in log p.

    Returns:
        (rows, number of parameters).
    """
    value = output().flatten()
    size = sum(parameter.numel() for parameter in parameters)
    generator = torch.Generator().manual_seed(seed)
    few = min(value.numel(), size + 8)
    mixed = torch.randn((few, value.numel()), generator=generator, dtype=torch.float64)
    scale = torch.cat([parameter.detach().abs().flatten() for parameter in parameters])
    found = torch.autograd.grad(
        value, list(parameters), mixed, is_grads_batched=True, materialize_grads=True
    )
    rows = torch.cat([part.reshape(few, -1) for part in found], dim=1)
    return (rows * scale if logarithmic else rows).numpy()


def nullity(matrix: Array, floor: float = 1e-11) -> Nullity:
    """Counts the singular values that are zero up to rounding.

    Columns are first scaled to norm one, so that a parameter with little influence is not counted
    as flat. Columns of zeros count as flat.
    """
    norms = np.linalg.norm(matrix, axis=0)
    matrix = matrix / np.where(norms > 1e-14 * norms.max(), norms, np.inf)
    singular = np.linalg.svd(matrix, compute_uv=False)
    missing = matrix.shape[1] - len(singular)
    singular = np.concatenate([singular, np.zeros(missing)]) / singular[0]
    zero = singular <= floor
    below = max(float(singular[zero].max(initial=0.0)), 1e-16)
    return Nullity(matrix.shape[1], int(zero.sum()), float(singular[~zero].min()) / below)
