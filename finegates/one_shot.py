"""One-shot pruning of rows and columns: random, magnitude, Wanda-like.

Every criterion scores the rows and columns of each layer. In each layer those with the lowest
scores are closed, as many as a gated run closed. Two such models differ only in the choice of rows
and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from finegates.adapters import adapter_for, unwrap
from finegates.modules.linear import dense_weight, linear_shape
from finegates.seeds import derive_seed

Scores = dict[str, tuple[Tensor, Tensor]]
"""Scores by layer: of its rows (out,) and of its columns (in,)."""


def random_scores(model: nn.Module, layers: Iterable[str], seed: int) -> Scores:
    """Random scores, seeded by each layer's name."""
    scores = {}
    for name in layers:
        columns, rows = linear_shape(unwrap(model).get_submodule(name))
        generator = torch.Generator().manual_seed(derive_seed(seed, "random", name))
        drawn = torch.rand(rows + columns, generator=generator, dtype=torch.float32, device="cpu")
        scores[name] = (drawn[:rows], drawn[rows:])
    return scores


def magnitude_scores(model: nn.Module, layers: Iterable[str]) -> Scores:
    """Euclidean norms of rows and columns of W."""
    scores = {}
    for name in layers:
        weight, _ = dense_weight(unwrap(model).get_submodule(name))
        scores[name] = (weight.norm(dim=1), weight.norm(dim=0))
    return scores


def second_moment_scores(
    model: nn.Module, layers: Iterable[str], moments: Mapping[str, Tensor]
) -> Scores:
    """Sums of ``|W_ij| sqrt(E x_j^2)`` over rows and over columns.

    The score of a single weight is that of Wanda (Sun et al. 2024).

    Args:
        model: dense.
        layers: names.
        moments: ``E x_j^2`` of each layer's inputs (in,), see :func:`second_moments`.
    """
    scores = {}
    for name in layers:
        weight, _ = dense_weight(unwrap(model).get_submodule(name))
        moved = weight.abs() * moments[name].sqrt().to(weight)
        scores[name] = (moved.sum(dim=1), moved.sum(dim=0))
    return scores


@torch.no_grad()
def second_moments(
    model: nn.Module, layers: Iterable[str], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """``E x_j^2`` over all tokens for the inputs of every layer, float32.

    Args:
        model: causal, dense; runs in evaluation mode, its mode is restored.
        layers: names.
        batches: token ids (batch, length).

    Raises:
        ValueError: no batches.
    """
    inner = unwrap(model)
    sums: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach().float().flatten(0, -2)
            sums[name] = sums.get(name, 0.0) + x.square().sum(0)
            tokens[name] = tokens.get(name, 0) + len(x)

        return hook

    hooks: list[RemovableHandle] = [
        inner.get_submodule(name).register_forward_pre_hook(record(name)) for name in layers
    ]
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    try:
        for ids in batches:
            model(input_ids=ids.to(device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    if not sums:
        raise ValueError("second moments need at least one batch")
    return {name: total / tokens[name] for name, total in sums.items()}


def closing_gates(
    scores: Scores, closed: Mapping[str, Mapping[str, int]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Binary gates that close the lowest-scored rows and columns of each layer.

    Args:
        scores: by layer.
        closed: how many ``rows`` and ``cols`` to close, by layer, as
            ``finegates.gates.monitor.closed_counts`` gives them.

    Returns:
        gates for ``finegates.attach_fixed``. Of equal scores the later index is closed first.
    """
    return {
        name: (
            keep_largest(scores[name][0], counts["rows"]),
            keep_largest(scores[name][1], counts["cols"]),
        )
        for name, counts in closed.items()
    }


def gated_names(model: nn.Module) -> list[str]:
    """The layers that gates would go on."""
    return list(adapter_for(model).gated(model))


def keep_largest(scores: Tensor, closed: int) -> Tensor:
    """A gate (n,) of ones, with zeros at the ``closed`` lowest of the scores (n,).

    Raises:
        ValueError: ``closed`` is not in [0, n].
    """
    if not 0 <= closed <= scores.numel():
        raise ValueError(f"cannot close {closed} of {scores.numel()} dimensions")
    gate = torch.ones_like(scores)
    order = torch.argsort(scores, descending=True, stable=True)
    gate[order[scores.numel() - closed :]] = 0.0
    return gate


@torch.no_grad()
def magnitude_gates(
    model: nn.Module, closed: dict[str, dict[str, int]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Binary gates that close the rows and columns of least Euclidean norm.

    Args:
        model: a transformers model without gates.
        closed: how many rows and columns to close, by layer name, as
            ``finegates.gates.monitor.closed_counts`` gives them for a gated model. With the same
            numbers in each layer, exactly as many weights are removed as by the gates, so that a
            comparison tests only the choice of rows and columns.

    Returns:
        row gates (out,) and column gates (in,) of zeros and ones, for
        ``finegates.attach_fixed``. Of equal norms the later index is closed first.
    """
    return closing_gates(magnitude_scores(model, closed), closed)
