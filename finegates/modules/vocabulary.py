"""Resizes the vocabulary of models whose output layer is gated or compact.

transformers resizes only an output layer that is an ``nn.Linear``. Here a dense layer temporarily
replaces the gated or compact one, which is then rebuilt from the resized layer. Rows of new tokens
are open, and the logits of kept tokens do not change.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finegates.modules.kinds import CompactLayer, GatedLayer
from finegates.modules.tying import move_tied_keys

METHOD = "resize_token_embeddings"


def keep_output_layers() -> None:
    """Patches ``resize_token_embeddings`` to keep output layers of this library.

    Further calls change nothing. Models with other output layers are resized as before.
    """
    modeling = sys.modules.get("transformers.modeling_utils")
    if modeling is None:
        return
    method = getattr(modeling.PreTrainedModel, METHOD)
    if not hasattr(method, "finegates_keeps"):
        setattr(modeling.PreTrainedModel, METHOD, _keeping(method))


def _keeping(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def kept(self: Any, *args: Any, **kwargs: Any) -> Any:
        head = self.get_output_embeddings()
        if not isinstance(head, CompactLayer | GatedLayer):
            return method(self, *args, **kwargs)
        path = next(path for path, module in self.named_modules() if module is head)
        _check_resizable(path, head)
        with _dense_in_place(self, path, head):
            return method(self, *args, **kwargs)

    kept.finegates_keeps = True  # type: ignore[attr-defined]
    return kept


@contextmanager
def _dense_in_place(model: Any, path: str, head: Any) -> Iterator[None]:
    """Within the block, the output layer is dense; afterwards it is rebuilt, resized."""
    gated = isinstance(head, GatedLayer)
    dense = head.base if gated else _dense(head)
    model.set_submodule(path, dense)
    if gated:
        move_tied_keys(model, f"{path}.base", path)
    try:
        yield
    finally:
        resized = model.get_submodule(path)
        _resize_other_bias(model, path, resized)
        if gated:
            _resize_gates(head, resized)
            move_tied_keys(model, path, f"{path}.base")
        elif resized is not dense or dense.weight.shape[0] != head.out_features:
            head = _compacted(head, resized)
        model.set_submodule(path, head)


def _resize_other_bias(model: nn.Module, path: str, resized: Any) -> None:
    """Resizes a second bias of the head to the size of the layer's.

    RoBERTa has such a bias, which is unused once the layer's is no longer tied to it.
    """
    source = (getattr(type(model), "_tied_weights_keys", None) or {}).get(f"{path}.bias")
    if source is None or resized.bias is None:
        return
    owner, _, name = source.rpartition(".")
    other, tokens = getattr(model.get_submodule(owner), name), resized.bias.numel()
    if other.numel() != tokens:
        added = resized.bias.detach()[other.numel() :]
        other.data = torch.cat([other.detach()[:tokens], added.to(other)])


def _check_resizable(path: str, head: Any) -> None:
    """Raises ValueError unless the layer consists of one matrix and its own gates."""
    inner = head.base if isinstance(head, GatedLayer) else head.linear
    if type(inner) is not nn.Linear:
        raise ValueError(
            f"the output layer {path} contains {type(inner).__name__}, which cannot be resized; "
            "merge adapters first (merge_and_unload of peft), then resize"
        )
    if isinstance(head, GatedLayer) and head.rows is not None and not head.rows.can_resize:
        raise ValueError(
            f"the output layer {path} shares its gates with other layers, which keep their sizes; "
            "resize before attaching gates, or after finegates.compact"
        )


def _dense(layer: Any) -> nn.Linear:
    """The dense equivalent of a compact layer; its inner layer if nothing is removed."""
    if layer.rows is None and layer.cols is None:
        inner: nn.Linear = layer.linear
        return inner
    weight = torch.zeros(
        layer.out_features, layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device
    )
    rows, cols = _indices(layer)
    weight[rows[:, None], cols] = layer.weight.detach()
    # Its parameters are replaced next.
    dense = nn.Linear(1, 1, bias=layer.bias is not None, device="meta", dtype=weight.dtype)
    dense.out_features, dense.in_features = weight.shape
    dense.weight = nn.Parameter(weight, layer.weight.requires_grad)
    if layer.bias is not None:
        bias = weight.new_zeros(layer.out_features)
        bias[rows] = layer.bias.detach()
        dense.bias = nn.Parameter(bias, layer.bias.requires_grad)
    return dense


def _indices(layer: Any) -> tuple[Tensor, Tensor]:
    """Positions of a compact layer's kept rows and columns in the dense one."""
    kept_out, kept_in = layer.kept
    device = layer.weight.device
    rows = torch.arange(kept_out, device=device) if layer.rows is None else layer.rows
    cols = torch.arange(kept_in, device=device) if layer.cols is None else layer.cols
    return rows, cols


def _compacted(layer: Any, resized: Any) -> nn.Module:
    """Compacts a resized dense layer again, keeping all new rows."""
    tokens, before = resized.weight.shape[0], layer.out_features
    rows, cols = None, layer.cols
    weight, bias = resized.weight, resized.bias
    if layer.rows is not None:
        added = torch.arange(before, max(tokens, before), device=layer.rows.device)
        rows = torch.cat([layer.rows[layer.rows < tokens], added])
    if rows is not None:
        weight, bias = weight[rows], None if bias is None else bias[rows]
    if cols is not None:
        weight = weight[:, cols]
    removed = rows is not None or cols is not None
    made = type(layer)(
        weight.detach().clone() if removed else weight,
        None if bias is None else bias.detach().clone() if removed else bias,
        in_features=layer.in_features,
        out_features=tokens,
        cols=cols,
        rows=rows,
        dense_shape=(tokens, layer.dense_shape[1]),
    )
    if not removed:  # the same parameters, which the embeddings may share
        made.weight, made.bias = weight, bias
    for mine, theirs in ((made.weight, resized.weight), (made.bias, resized.bias)):
        if mine is not None:
            mine.requires_grad_(theirs.requires_grad)
    made.onednn_from, made.keeps_stock_layout = layer.onednn_from, layer.keeps_stock_layout
    return made.train(layer.training)


def _resize_gates(head: Any, resized: nn.Module) -> None:
    """Puts a resized layer between its gates; rows of new tokens are open."""
    head.base = resized
    head.out_features = int(resized.weight.shape[0])  # type: ignore[index]
    if head.rows is not None and head.rows.size != head.out_features:
        head.rows.resize(head.out_features)
