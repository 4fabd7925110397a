"""The table and the curves of Llamas that are trained from random weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from finegates.suite.runs.llama_record import CausalRecord
from finegates.suite.stats import mean
from finegates.suite.tables.llama_captions import causal_caption, check_causal
from finegates.suite.tables.llama_rows import (
    COUNTS,
    PREDICTION,
    REMOVED_AND_KEPT,
    TARGET_AND_REALISED,
    causal_row,
    group_starts,
    groups,
    typed_frame,
)
from finegates.suite.tables.render import BLANK, Column, Table, decimals, percent
from finegates.suite.tables.runs import FRACTION_DECIMALS

if TYPE_CHECKING:
    import pandas as pd


def pretraining_table(records: Sequence[CausalRecord]) -> Table:
    """Dense and gated training from the same weights on the same tokens.

    Args:
        records: records of one tier's experiment ``pretraining``, in the order of the rows.

    Raises:
        ValueError: there are no records, or records of several tiers or experiments.
    """
    tier = check_causal(records, "pretraining")
    dense = {(r.name, r.seed): r for r in records if r.method == "dense"}
    rows = []
    for found in groups(records):
        row = causal_row(found)
        reached = [tokens_to_reach(r, dense.get((r.name, r.seed))) for r in found]
        known = [tokens for tokens in reached if tokens is not None]
        # Blank if any seed did not reach it: a mean over the others would be biased.
        row["tokens_to_dense_loss"] = round(mean(known)) if len(known) == len(reached) else None
        row["tokens"] = found[0].curve[-1].tokens if found[0].curve else None
        rows.append(row)
    lead = (
        "Trained from the same random weights on the same tokens in the same order. Extra "
        "parameters: gates, relative to the dense model; they are folded away at the end. "
        "Removed: weights that compaction leaves out. Tokens to the dense loss: seen at the first "
        f"evaluation whose held-out loss is at most the dense run's final one; {BLANK} if none is."
    )
    return Table(
        name="llama-pretraining",
        title=f"Pretraining with gates (tier {tier})",
        caption=causal_caption(lead, records),
        numbers=typed_frame(rows, (*COUNTS, "tokens", "tokens_to_dense_loss")),
        columns=(
            Column("Size, method", "{0[name]}, {0[title]}".format, text=True),
            *TARGET_AND_REALISED,
            *REMOVED_AND_KEPT,
            Column("Extra (%)", "extra_parameters_fraction", partial(percent, decimals=3)),
            Column("Loss", "loss", decimals(4)),
            *PREDICTION,
            Column("Tokens", "tokens", decimals(0)),
            Column("to dense loss", "tokens_to_dense_loss", decimals(0)),
            Column("Seeds", "seeds"),
        ),
        rows=rows,
        rule_before=group_starts([row["name"] for row in rows]),
    )


def tokens_to_reach(record: CausalRecord, dense: CausalRecord | None) -> int | None:
    """Tokens until a run first reaches the dense run's final held-out loss.

    None if it never does, or without a dense run. For the dense run itself, this is the first
    evaluation that is as good as its last one.
    """
    if dense is None:
        return None
    losses = [p.held_out_loss for p in dense.curve if p.held_out_loss is not None]
    if not losses:
        return None
    return next(
        (
            point.tokens
            for point in record.curve
            if point.held_out_loss is not None and point.held_out_loss <= losses[-1]
        ),
        None,
    )


def curve_table(records: Sequence[CausalRecord]) -> pd.DataFrame:
    """The curves of all runs, one point per row."""
    import pandas as pd

    rows = [
        {
            "tier": record.tier,
            "name": record.name,
            "method": record.method,
            "title": record.title,
            "target": record.target,
            "seed": record.seed,
            "gated_weights": record.budget.parameters.gated,
            **{
                key: round(value, FRACTION_DECIMALS) + 0.0 if isinstance(value, float) else value
                for key, value in point.model_dump().items()
            },
        }
        for record in records
        for point in record.curve
    ]
    frame = pd.DataFrame(rows)
    whole = ("seed", "gated_weights", "step", "tokens", "removable_weights")
    return frame.astype({name: "Int64" for name in whole}) if rows else frame
