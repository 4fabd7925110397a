"""Item 11: flat directions that trained biases add, through the library's blocks."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from theory.block_models import WIDTH, block_model, block_output
from theory.cases import Case
from theory.checks.flatness import WIDER, kinds
from theory.checks.settings import Settings
from theory.evidence import Check
from theory.flatness import jacobian, nullity
from theory.measured_directions import PRESETS, factored_block, gated_block, rows_for
from theory.trained_biases import bias_directions, biases

MORE = ("deberta-v2", "gpt_neox")
"""Kinds of blocks with more directions: few relative positions see a key's bias; attention and
feed-forward part write to one sum, where their biases add up.
"""


def counted(model: nn.Module, parameters: list[Tensor], seed: int) -> int:
    """The nullity of the Jacobian of a block's outputs in some of its parameters."""
    size = sum(parameter.numel() for parameter in parameters)
    for parameter in parameters:
        parameter.requires_grad_(True)
    output = partial(block_output, model, rows_for(size, model), seed=seed)
    return nullity(jacobian(output, parameters, seed)).count


def block_with(placed: str, width: int, seed: int) -> tuple[nn.Module, list[Tensor]]:
    """A block of BERT with gates of a placement or with LoRA 1, and what they train."""
    if placed not in PRESETS:
        return factored_block("bert", 1, width, seed)
    model, gates = gated_block("bert", PRESETS[placed], width, seed)
    return model, [gate.values for gate in gates]


def check_biases(settings: Settings) -> Check:
    """Trained biases have flat directions of their own; see :mod:`theory.trained_biases`.

    Measured by automatic differentiation: in the biases alone on every kind of block, and in a
    block of BERT with gates and with LoRA, where they add up with those without biases. Counts are
    compared as count plus one where they can be zero.
    """
    cases = []
    for name in kinds(settings):
        for width in (WIDTH, WIDER):
            model = block_model(name, width, seed=settings.seed).requires_grad_(False)
            predicted = 1 + bias_directions(model)
            found = 1 + (counted(model, biases(model), settings.seed) if biases(model) else 0)
            relation = "at least" if name in MORE else "equal"
            where = f"{name}, width {width}"
            cases.append(Case(where, relation, predicted, found, constant="biases"))  # type: ignore[arg-type]
    for width in (WIDTH, WIDER):
        alone = bias_directions(block_model("bert", width, seed=settings.seed))
        for placed in (*PRESETS, "LoRA 1"):
            model, parameters = block_with(placed, width, settings.seed)
            still = counted(model, parameters, settings.seed)
            both = counted(model, [*parameters, *biases(model)], settings.seed)
            where = f"bert, {placed}, width {width}"
            cases.append(Case(where, "at least", still + alone, both, constant="together"))
    return Check(
        "flat-biases",
        11,
        "law",
        "trained biases have affine flat directions of their own: one for each dimension of keys "
        "that no position turns, for each of values against the outputs, and for each layer whose "
        "output norms read, 2d + 2 in a block of BERT, next to those of gates or LoRA",
        "gates not zero, factors of full rank, weights in general position; at least these",
        tuple(cases),
        claim="bilinear",
    )
