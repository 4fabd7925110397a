"""Exact removal of dimensions of the residual stream that are closed in the whole model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finegates.adapters import Adapter
from finegates.adapters.stream_parts import reading_and_writing
from finegates.compaction.draft import Draft
from finegates.compaction.plans import StreamPlan
from finegates.gates.gated_output import width_gate
from finegates.modules.narrow_stream import removed_stream_parameters


def narrow_width(model: nn.Module, adapter: Adapter, drafts: dict[str, Draft]) -> StreamPlan | None:
    """Removes closed dimensions of the stream from every layer that reads or writes it.

    1. A dimension is closed if the gate of the stream is zero there. Everything that writes to the
       stream is multiplied by this gate, so the dimension is zero, and its columns are unread.
    2. If all are closed, one stays.
    3. The other dimensions are the stream: layers read and write their positions among them.

    Returns:
        what stays; None without such a gate.
    """
    gate = width_gate(model)
    if gate is None:
        return None
    values = gate.value().detach()
    if values.is_meta:
        raise ValueError("the gate of the residual stream is on the meta device and has no values")
    mask = (values != 0).cpu()
    mask[0] |= not bool(mask.any())  # rule 2
    stream = adapter.stream(model)
    kept = mask.nonzero().flatten()
    places = mask.cumsum(0) - 1
    reads, writes = reading_and_writing(adapter.blocks(model))
    for path in (*reads, *writes):
        if path not in drafts:
            drafts[path] = Draft.open(path, model.get_submodule(path))
    for path in reads:
        draft = drafts[path]
        draft.remove_cols(draft.cols & mask, "of closed hidden dimensions")
        draft.input_width = kept.numel()
        draft.read = _unless_all(places[draft.cols], kept.numel())
    for path in writes:
        draft = drafts[path]
        draft.remove_rows(draft.rows & mask, "of closed hidden dimensions")
        draft.output_width = kept.numel()
        draft.write = _unless_all(places[draft.rows], kept.numel())
    removed = removed_stream_parameters(model, stream, kept, values)
    return StreamPlan(stream, kept, values, removed)


def _unless_all(index: Tensor, size: int) -> Tensor | None:
    return None if index.numel() == size else index.to(torch.int64)
