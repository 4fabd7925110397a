"""Whether leaving out a side of a layer saves more than the moving of data that it needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from finegates.compaction.cost import CostModel
from finegates.compaction.draft import Draft


def choose_sides(drafts: Sequence[Draft], cost: CostModel) -> None:
    """Keeps a side dense where leaving it out would not pay; changes the drafts.

    Args:
        drafts: one layer, or several with the same kept columns that become one product.
        cost: the prices.
    """
    first = drafts[0]
    inputs = [(False, first.cols.numel() if first.input_width is None else first.input_width)]
    if first.input_width is not None or bool(first.cols.all()):
        inputs = [(first.read is not None, int(first.cols.sum()))]
    else:
        inputs.append((True, int(first.cols.sum())))
    kept = sum(int(draft.rows.sum()) for draft in drafts)
    narrow = any(draft.output_width is not None for draft in drafts)
    total = sum(
        draft.rows.numel() if draft.output_width is None else draft.output_width for draft in drafts
    )
    outputs: list[tuple[int | None, int]] = [(None, total)]
    if narrow or kept == total:
        outputs = [(total if kept < total else None, kept)]
    elif len(drafts) == 1:
        outputs.append((total, kept))
    _, gathers, scatters = min(
        (cost.seconds(rows, columns, gathers=g, scatters_to=s), g, s is not None)
        for g, columns in inputs
        for s, rows in outputs
    )
    for draft in drafts:
        if draft.input_width is None and not gathers and not bool(draft.cols.all()):
            draft.reasons.append("reads all columns: gathering would not pay")
            draft.cols = torch.ones_like(draft.cols)
        if draft.output_width is None and not scatters and not bool(draft.rows.all()):
            draft.reasons.append("writes all rows: scattering would not pay")
            draft.rows = torch.ones_like(draft.rows)
