"""Item 11: flat directions of a transformer block, measured through ``finegates.attach``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from finegates.adapters import adapter_for
from finegates.modules.linear import linear_shape
from theory.block_models import KINDS, WIDTH, block_output
from theory.cases import Case
from theory.checks.settings import ROUNDING, Settings
from theory.evidence import Check
from theory.factor_directions import factor_directions, start_directions
from theory.flatness import (
    generators,
)
from theory.measured_directions import (
    PRESETS,
    Measured,
    gated_block,
    measured_factors,
    measured_gates,
)

WIDTHS = (8, 16, 24, 32)
WIDER = 16
"""Twice the least width."""
RANKS = (1, 2)
WIDE_FACTORS = (("bert", 24, 4), ("bert", 32, 2), ("llama", 24, 4), ("llama", 32, 2))
"""Kind of block, width and rank of further measurements of LoRA."""


def kinds(settings: Settings) -> list[str]:
    """Every kind of block; only the first few in a study with few problems."""
    return list(KINDS)[: 3 * settings.problems]


def check_directions(settings: Settings) -> Check:
    """Nullity of ∂output/∂gates = dim N at random positive gates, on every kind of block.

    This is the proposition of :mod:`theory.flatness`, and in addition that there are no other flat
    directions in these kinds of blocks; types with more structure have more. A far move along N
    must not change the output either. Predicted from the description of the block and the placement
    of the gates. Measured by automatic differentiation through the model that ``finegates.attach``
    returns. Counts are compared exactly, as count plus one where they can be zero.
    """
    cases, rows = [], []
    for name in kinds(settings):
        for placed in PRESETS:
            found = measured_gates(name, placed, WIDTH, settings.seed)
            cases += [
                Case(f"{name}, {placed}", "equal", 1 + found.predicted, 1 + found.nullity.count),
                Case(f"{name}, {placed}, moved far", "equal", 1, 1 + found.moved, ROUNDING),
            ]
            rows.append(_row(name, placed, found))
        rows.append(_row(name, "LoRA 1", measured_factors(name, 1, WIDTH, settings.seed)))
    return Check(
        "flat-directions",
        11,
        "law",
        "the Jacobian of a block's outputs in its gates has the nullity dim{δ : Aδ ∈ S}, S spanned "
        "by the rescalings of values against outputs, queries against keys, hidden rows against "
        "columns, and layers without a bias",
        "gates not zero, weights in general position, frozen biases; independent and shared gates; "
        "these kinds of blocks (in others at least so many)",
        tuple(cases),
        claim="bilinear",
        frames={"flat_kinds": pd.DataFrame(rows)},
    )


def _row(name: str, placed: str, found: Measured) -> dict[str, object]:
    size, count = found.nullity.size, found.nullity.count
    return {
        "kind": name,
        "about": KINDS[name].about,
        "parameters": placed,
        "size": size,
        "predicted": found.predicted,
        "measured": count,
        "share": count / size,
    }


def check_width(settings: Settings) -> Check:
    """A BERT block of width d: 2d + 1 with independent gates, one for each head with shared gates.

    The 2d + 1 are d values, d scores, and the layer of keys, whose bias cancels in softmax. As a
    fraction of the gates this is (2d + 1)/(10d + 2f) with f the feed-forward width, 11 % at f = 4d.
    With shared gates only the gates of heads against those of their values remain. LoRA of rank 1
    has as many parameters as independent gates, and 6 + 3 flat directions.
    """
    cases, rows = [], []
    for width in WIDTHS:
        for placed, closed in (("independent", 2 * width + 1), ("shared", 2)):
            found = measured_gates("bert", placed, width, settings.seed)
            cases.append(
                Case(f"{placed}, width {width}", "equal", 1 + closed, 1 + found.nullity.count)
            )
            rows.append({"width": width, **_row("bert", placed, found)})
        found = measured_factors("bert", 1, width, settings.seed)
        cases.append(Case(f"LoRA 1, width {width}", "equal", 6 + 3, found.nullity.count))
        rows.append({"width": width, **_row("bert", "LoRA 1", found)})
    return Check(
        "flat-width",
        11,
        "law",
        "a block of BERT of width d has 2d + 1 flat directions with independent gates; with shared "
        "gates it has one for each head and with LoRA 1 nine, at any width",
        "all layers have biases, which are frozen; gates not zero, factors of full rank; widths 8 "
        "to 32",
        tuple(cases),
        claim="bilinear",
        frames={"flat_width": pd.DataFrame(rows)},
    )


def check_factors(settings: Settings) -> Check:
    """LoRA of rank r on the same layers: r² for each layer, and r more where a LayerNorm is near.

    See :mod:`theory.factor_directions`. Measured at random factors on every kind of block at the
    least width, and at larger widths and ranks on two kinds. At LoRA's start, where B = 0, all of A
    is flat, and so are the directions of B that a LayerNorm subtracts.
    """
    cases = []
    places = [(name, WIDTH, rank) for name in kinds(settings) for rank in RANKS]
    places += [place for place in WIDE_FACTORS if settings.problems > 2]
    for name, width, rank in places:
        found = measured_factors(name, rank, width, settings.seed)
        where = f"{name}, width {width}, r = {rank}"
        cases.append(Case(where, "equal", found.predicted, found.nullity.count))
        if (width, rank) == (WIDTH, RANKS[0]):
            found = measured_factors(name, rank, width, settings.seed, start=True)
            count = found.nullity.count
            cases.append(Case(f"{where}, start", "equal", found.predicted, count, constant="start"))
    return Check(
        "flat-factors",
        11,
        "law",
        "LoRA of rank r on the same layers has r² flat directions for each layer, and r more for "
        "each whose output a LayerNorm reads, and for each of keys that reads one; at its start, "
        "where B = 0, all of A is flat, and r more for each layer whose output a LayerNorm reads",
        "factors of full rank but for the start, r small against the width, weights in general "
        "position; for keys no position in the scores; every kind at width 8, two kinds wider",
        tuple(cases),
        claim="bilinear",
    )


def check_closed(settings: Settings) -> Check:
    """Two partners enter as a product, L = φ(r_v c_o): at r_v = 0 the gradient of r_v is c_o φ'(0).

    So both gradients vanish where both gates are closed. The Hessian there is [[0, φ'(0)], [φ'(0),
    0]]: a strict saddle, and the penalty drives gates into it. Measured through
    ``finegates.attach``: gradients at r_v = 0 for c_o = ½, ¼, 0 against the gradient for c_o = 1,
    and the least eigenvalue of the Hessian in the pair at (0, 0).
    """
    cases = []
    for index in range(2):
        model, _ = gated_block("bert", "reference", seed=settings.seed + index)
        goal = settings.random("closed", index).standard_normal((2, 9, WIDTH))
        for place in range(WIDTH):
            loss = partial(_loss_of_pair, model, place, torch.as_tensor(goal))
            slope, name = _slopes(loss, 0.0, 1.0)[0], f"block {index}, value {place}"
            for partner in (0.5, 0.25, 0.0):
                found = 1 + _slopes(loss, 0.0, partner)[0] / slope
                cases.append(
                    Case(f"{name}, partner {partner}", "equal", 1 + partner, found, ROUNDING)
                )
            both = torch.zeros(2, dtype=torch.float64)
            hessian = torch.autograd.functional.hessian(loss, both)
            least = float(torch.linalg.eigvalsh(hessian)[0])
            cases.append(Case(f"{name}, saddle", "equal", abs(slope), -least, ROUNDING))
    return Check(
        "flat-closed",
        11,
        "law",
        "the gradient of a closed gate is proportional to its partner: where both the row of a "
        "value and its column of the output are closed, both gradients are 0, at a strict saddle",
        "independent gates before clipping; value rows and output columns",
        tuple(cases),
        claim="bilinear",
    )


def _loss_of_pair(model: nn.Module, place: int, goal: Tensor, pair: Tensor) -> Tensor:
    """A squared error as a function of a value's row gate and its column gate in the output."""
    attention = "encoder.layer.0.attention"
    replaced = {}
    for path, value in zip(("self.value.rows", "output.dense.cols"), pair, strict=True):
        name = f"{attention}.{path}.values"
        unit = torch.zeros(WIDTH, dtype=torch.float64)
        unit[place] = 1.0
        replaced[name] = model.get_parameter(name).detach() * (1 - unit) + value * unit
    return ((block_output(model, 2, replaced=replaced) - goal) ** 2).mean()


def _slopes(loss: Callable[[Tensor], Tensor], *pair: float) -> tuple[float, float]:
    point = torch.tensor(pair, dtype=torch.float64, requires_grad=True)
    first, second = torch.autograd.grad(loss(point), point)[0].tolist()
    return first, second


def check_degeneracy(settings: Settings) -> Check:
    """Claim "It avoids the bilinear degeneracy of LoRA": does the nullity grow with the width?

    LoRA's does not (``flat-factors``), as long as biases are frozen (``flat-biases``). Those of
    independent gates grow by the proposition of :mod:`theory.flatness`, so that their share of the
    parameters stays while LoRA's falls as 1/d. A comparison of shares at one width would depend on
    the width: in narrow blocks with few rescalings gates are below LoRA. Cases, by kind of block:
    one plus the increase of the nullity from width 8 to 16, through ``finegates.attach``. The table
    ``flat_models`` has the shares at the shape of RoBERTa-base.
    """
    cases = []
    for name in kinds(settings):
        narrow, wide = (
            measured_gates(name, "independent", width, settings.seed).nullity.count
            for width in (WIDTH, WIDER)
        )
        cases.append(Case(name, "at most", 1.0, 1.0 + wide - narrow, levels={"kind": name}))
    return Check(
        "degeneracy-claim",
        11,
        "claim",
        "the number of flat directions of row and column gates does not grow with the width, as "
        "that of LoRA does not (one plus the increase from width 8 to 16)",
        "independent gates before clipping, frozen biases, factors of full rank; through the "
        "library, one block of every kind",
        tuple(cases),
        claim="bilinear",
        frames={"flat_models": models_frame()},
    )


SHOWN_RANKS = (1, 8)


def models_frame() -> pd.DataFrame:
    """Flat directions at the real shapes of models, counted without weights.

    For gates by the generators of :mod:`theory.flatness`, which is a lower bound for any weights.
    For LoRA by :func:`theory.factor_directions.factor_directions`. All blocks of a model are equal.
    """
    from transformers import AutoModel, RobertaConfig

    config = RobertaConfig()  # the default is RoBERTa-base
    blocks, config.num_hidden_layers = config.num_hidden_layers, 1
    with torch.device("meta"):
        model = AutoModel.from_config(config).eval()
    layers = adapter_for(model).gated(model)
    size = sum(sum(linear_shape(model.get_submodule(path))) for path in layers)
    rows = [("independent gates", size, len(generators(model)))]
    rows += [(f"LoRA {r}", r * size, factor_directions(model, r)) for r in SHOWN_RANKS]
    rows += [(f"LoRA {r}, start", r * size, start_directions(model, r)) for r in SHOWN_RANKS]
    return pd.DataFrame(
        [
            {"model": "RoBERTa-base", "layers": blocks * len(layers), "parameters": name,
             "size": blocks * each, "flat": blocks * flat, "share": flat / each}
            for name, each, flat in rows
        ]
    )  # fmt: skip


def check_shared(settings: Settings) -> Check:
    """Shared gates of the preset ``structured`` against independent gates on the same block.

    The share of flat directions, by kind of block. Sharing leaves the gates of heads against those
    of values. In blocks without biases it also leaves two rescalings of an attention and one of a
    feed-forward part. These numbers do not grow with the width, so the comparison uses the least
    width. The exception is a type with biases outside of its gates (DeBERTa's first version), where
    independent gates have few flat directions.
    """
    cases = []
    for name in kinds(settings):
        shares = [
            (found := measured_gates(name, placed, WIDTH, settings.seed).nullity).count / found.size
            for placed in ("independent", "shared")
        ]
        cases.append(Case(name, "at most", shares[0], shares[1]))
    return Check(
        "flat-shared",
        11,
        "bound",
        "sharing gates along the dependencies of a block lowers the share of flat directions",
        "gates not zero, frozen biases; one block of every kind, none with biases outside of gates",
        tuple(cases),
        claim="bilinear",
    )
