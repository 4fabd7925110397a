"""Which sides of a layer stay dense because removing them would cost time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from finegates.compaction.costs import Costs
from finegates.compaction.draft import Draft


def choose_sides(drafts: Sequence[Draft], cost: Costs) -> None:
    """Keeps a side dense if removing it would not pay; changes the drafts.

    Args:
        drafts: one layer, or several with the same kept columns that will be fused.
        cost: the cost model.
    """
    first = drafts[0]
    # Options for the inputs: (gather?, columns). A narrow input leaves no choice.
    inputs = [(False, first.cols.numel() if first.input_width is None else first.input_width)]
    if first.input_width is not None or bool(first.cols.all()):
        inputs = [(first.read is not None, int(first.cols.sum()))]
    else:
        inputs.append((True, int(first.cols.sum())))
    # Options for the outputs: (scattered size or None, rows). Fused layers do not scatter.
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
    # The cheapest combination; sides that it keeps dense become dense in every draft.
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
