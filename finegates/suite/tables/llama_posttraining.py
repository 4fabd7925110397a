"""The table of gates trained on a pretrained Llama, without a task."""

from __future__ import annotations

from collections.abc import Sequence

from finegates.suite.runs.llama_record import CausalRecord
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
from finegates.suite.tables.render import Column, Table, decimals


def posttraining_table(records: Sequence[CausalRecord]) -> Table:
    """Perplexity and sparsity of gates, one-shot pruning and the dense model.

    Args:
        records: records of one tier's experiment ``posttraining``, in the order of the rows.

    Raises:
        ValueError: there are no records, or records of several tiers or experiments.
    """
    tier = check_causal(records, "posttraining")
    rows = [causal_row(found) for found in groups(records)]
    lead = (
        "Perplexity of held-out text, token by token. Only gates are trained; embeddings and, "
        "unless a method says otherwise, lm_head do not change. One-shot pruning closes as many "
        "rows and columns of each layer as the gated run of the same target, and is not trained. "
        "Realised sparsity: gated weights in closed rows or columns; removed: weights that "
        "compaction removes, as a fraction of all parameters. At the start: perplexity with gates "
        "attached, before training."
    )
    return Table(
        name="llama-posttraining",
        title=f"Posttraining without a task (tier {tier})",
        caption=causal_caption(lead, records),
        numbers=typed_frame(rows, COUNTS),
        columns=(
            Column("Model, method", "{0[model]}, {0[title]}".format, text=True),
            *TARGET_AND_REALISED,
            *REMOVED_AND_KEPT,
            Column("At the start", "start_perplexity", decimals(3)),
            *PREDICTION,
            Column("Seeds", "seeds"),
        ),
        rows=rows,
        rule_before=group_starts([(row["name"], row["method"]) for row in rows]),
    )
