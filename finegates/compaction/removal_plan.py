"""Plans what a gated model in training can lose, on its dense form.

An attention loses heads or dimensions of heads only if the stock module with other sizes does: its
own parameters and the scale of its queries must not change.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finegates.adapters import Adapter, Attention, HeadSizes, attentions
from finegates.blocks import Stream
from finegates.compaction.planner import plan_compaction
from finegates.compaction.plans import Plan
from finegates.gates.dense_form import DenseForm
from finegates.specs import NormSpec


def plan_removal(
    form: DenseForm, adapter: Adapter, kept: Mapping[str, Tensor]
) -> tuple[Plan, dict[str, HeadSizes]]:
    """Plans the removal of all but some positions of the gates; nothing is fused.

    An attention keeps the width of its heads, or all its heads, for the whole training if it could
    not follow to the end, so that a dimension that was removed is never needed again.

    Args:
        form: the dense form of the model; it notes which attentions keep their heads or width.
        adapter: of its architecture.
        kept: positions (m,) by the path of the gate in the dense form.

    Returns:
        the plan, and the new sizes of the attentions that get smaller, by path.

    Raises:
        ValueError: a hidden dimension is closed for good.
    """
    if form.whole is None:
        first = {path: positions[:1] * 0 for path, positions in kept.items()}
        form.wide = _cannot_follow(form, adapter, first)
        form.whole = _cannot_follow(form, _Without(adapter, form.wide, frozenset()), first)
    plan, heads = _planned(form, _Without(adapter, form.wide, form.whole), kept)
    if plan.stream is not None and plan.stream.kept.numel() < plan.stream.stream.size:
        raise ValueError(
            "hidden dimensions cannot be removed from a model in training; finegates.compact "
            "removes them"
        )
    return plan, heads


def _cannot_follow(
    form: DenseForm, adapter: Adapter, smallest: Mapping[str, Tensor]
) -> frozenset[str]:
    """Paths of the attentions that would have other parameters or scales in the end."""
    _, heads = _planned(form, adapter, smallest)
    return frozenset(
        path
        for path, sizes in heads.items()
        if not _is_only_smaller(form.model, adapter, path, sizes)
    )


def _planned(
    form: DenseForm, adapter: Adapter, kept: Mapping[str, Tensor]
) -> tuple[Plan, dict[str, HeadSizes]]:
    for path, (_, constant) in form.gates.items():
        constant.values = torch.zeros_like(constant.values).index_fill_(0, kept[path], 1.0)
    plan = plan_compaction(form.model, adapter)
    parts = attentions(adapter, form.model)
    heads = {
        path: dataclasses.replace(sizes, fused=False)
        for path, sizes in plan.heads.items()
        if sizes.width < sizes.head_dim or len(sizes.heads) < parts[path].heads
    }
    return plan, heads


class _Without(Adapter):
    """An architecture some of whose attentions keep the width of their heads, or all heads."""

    def __init__(self, adapter: Adapter, wide: frozenset[str], whole: frozenset[str]) -> None:
        self._adapter, self._wide, self._whole = adapter, wide, whole

    def blocks(self, model: nn.Module) -> tuple[Any, ...]:
        def seen(part: Attention) -> Attention:
            if part.path in self._whole:
                return dataclasses.replace(part, narrows=False)
            wide = part.path in self._wide
            return dataclasses.replace(part, fixed_scores=True) if wide else part

        return tuple(
            dataclasses.replace(block, attentions=tuple(map(seen, block.attentions)))
            for block in self._adapter.blocks(model)
        )

    def encoder(self, model: nn.Module) -> tuple[str, ...]:
        return self._adapter.encoder(model)

    def query_scale(self, module: nn.Module, sizes: HeadSizes) -> float:
        return self._adapter.query_scale(module, sizes)

    def obstacle(self, module: nn.Module, part: Attention) -> str | None:
        return self._adapter.obstacle(module, part)

    def stream(self, model: nn.Module) -> Stream:
        return self._adapter.stream(model)

    def norm_of(self, module: nn.Module) -> NormSpec | None:
        return self._adapter.norm_of(module)

    def narrow(self, module: nn.Module, part: Attention, sizes: HeadSizes) -> nn.Module:
        return self._adapter.narrow(module, part, sizes)


def _is_only_smaller(dense: nn.Module, adapter: Adapter, path: str, sizes: HeadSizes) -> bool:
    """Whether narrowing changes neither the module's own parameters nor the scale of queries."""
    module = dense.get_submodule(path)
    if adapter.query_scale(module, sizes) != 1.0:
        return False
    before = {name: p.shape for name, p in module.named_parameters()}
    part = attentions(adapter, dense)[path]
    after = {
        name: p.shape
        for name, p in adapter.narrow(copy.deepcopy(module), part, sizes).named_parameters()
    }
    return before == after
