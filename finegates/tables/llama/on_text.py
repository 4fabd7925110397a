"""Gates on a Llama without a task, after and during its pretraining."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from finegates.causal.record import CausalRecord
from finegates.stats import mean
from finegates.tables.llama.captions import causal_caption, check_causal
from finegates.tables.llama.frames import group_starts, typed_frame
from finegates.tables.render import BLANK, Table, number, percent
from finegates.tables.runs import FRACTION_DECIMALS, SCORE_DECIMALS

if TYPE_CHECKING:
    import pandas as pd


def posttraining_table(records: Sequence[CausalRecord]) -> Table:
    """Held-out prediction against what was removed: gates, one-shot pruning, the dense model.

    Args:
        records: of one tier, of the experiment ``posttraining``, in the order of the rows.

    Raises:
        ValueError: no records, or of several tiers or experiments.
    """
    tier = check_causal(records, "posttraining")
    rows = [_causal_row(found) for found in _groups(records)]
    lead = (
        "Held-out text is predicted token by token; nothing but gates is trained, embeddings and "
        "(but where a method says so) lm_head are as they were. One-shot pruning closes in each "
        "layer as many rows and columns as the gated run of the same target and is not trained. "
        "Realised sparsity: gated weights in closed rows or columns; removed: weights that "
        "compaction leaves out, of all parameters. At the start: perplexity with gates attached, "
        "before training."
    )
    return Table(
        name="llama-posttraining",
        title=f"Posttraining without a task (tier {tier})",
        caption=causal_caption(lead, records),
        numbers=typed_frame(rows, _COUNTS),
        header=(
            "Model, method",
            "Target (%)",
            "Realised (%)",
            "Removed",
            "of all (%)",
            "MACs kept (%)",
            "At the start",
            "Perplexity",
            "Bits/character",
            "Seeds",
        ),
        cells=tuple(
            (
                f"{row['model']}, {row['title']}",
                percent(row["target"]),
                percent(row["realised_sparsity"]),
                number(row["removed_weights"], 0),
                percent(row["removed_of_all"]),
                percent(row["macs_kept_fraction"]),
                number(row["start_perplexity"], 3),
                number(row["perplexity"], 3),
                number(row["bits_per_character"], 4),
                str(row["seeds"]),
            )
            for row in rows
        ),
        rule_before=group_starts([(row["name"], row["method"]) for row in rows]),
    )


def pretraining_table(records: Sequence[CausalRecord]) -> Table:
    """Dense and gated training from the same start on the same tokens.

    Args:
        records: of one tier, of the experiment ``pretraining``, in the order of the rows.

    Raises:
        ValueError: no records, or of several tiers or experiments.
    """
    tier = check_causal(records, "pretraining")
    dense = {(r.name, r.seed): r for r in records if r.method == "dense"}
    rows = []
    for found in _groups(records):
        row = _causal_row(found)
        reached = [tokens_to_reach(r, dense.get((r.name, r.seed))) for r in found]
        known = [tokens for tokens in reached if tokens is not None]
        # A mean over the seeds that got there would flatter those that did not.
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
        numbers=typed_frame(rows, (*_COUNTS, "tokens", "tokens_to_dense_loss")),
        header=(
            "Size, method",
            "Target (%)",
            "Realised (%)",
            "Removed",
            "of all (%)",
            "MACs kept (%)",
            "Extra (%)",
            "Loss",
            "Perplexity",
            "Bits/character",
            "Tokens",
            "to dense loss",
            "Seeds",
        ),
        cells=tuple(
            (
                f"{row['name']}, {row['title']}",
                percent(row["target"]),
                percent(row["realised_sparsity"]),
                number(row["removed_weights"], 0),
                percent(row["removed_of_all"]),
                percent(row["macs_kept_fraction"]),
                number(100 * row["extra_parameters_fraction"], 3),
                number(row["loss"], 4),
                number(row["perplexity"], 3),
                number(row["bits_per_character"], 4),
                number(row["tokens"], 0),
                number(row["tokens_to_dense_loss"], 0),
                str(row["seeds"]),
            )
            for row in rows
        ),
        rule_before=group_starts([row["name"] for row in rows]),
    )


def tokens_to_reach(record: CausalRecord, dense: CausalRecord | None) -> int | None:
    """Tokens seen at the first evaluation with at most the dense run's final held-out loss.

    None if there is none, or no dense run to compare with. The dense run's own answer is where it
    first was as good as at its end.
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
    """Every point of every run's curve, one a row."""
    import pandas as pd

    rows = [
        {
            "tier": record.tier,
            "name": record.name,
            "method": record.method,
            "title": record.title,
            "target": record.target,
            "seed": record.seed,
            "gated_weights": record.budget["parameters"]["gated"],
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


_COUNTS = ("removed_weights", "gated_weights", "all", "trainable")


def _groups(records: Sequence[CausalRecord]) -> list[list[CausalRecord]]:
    """Runs that differ in the seed alone, in the order of the first of each."""
    groups: dict[tuple[str, str, float | None], list[CausalRecord]] = {}
    for record in records:
        groups.setdefault((record.name, record.method, record.target), []).append(record)
    return list(groups.values())


def _causal_row(found: Sequence[CausalRecord]) -> dict[str, Any]:
    def average(value: Callable[[CausalRecord], float], decimals: int) -> float:
        return round(mean(map(value, found)), decimals) + 0.0

    first = found[0]
    counts = first.budget["parameters"]
    shrunk = [r.compact for r in found if r.compact is not None]
    return {
        "tier": first.tier,
        "name": first.name,
        "model": first.model["name"],
        "method": first.method,
        "title": first.title,
        "seeds": len(found),
        "target": first.target,
        "realised_sparsity": average(lambda r: r.realised_sparsity, FRACTION_DECIMALS),
        "removed_weights": average(lambda r: r.budget["removed_weights"], 0),
        "removed_of_gated": average(
            lambda r: r.budget["removed_weights"] / r.budget["parameters"]["gated"],
            FRACTION_DECIMALS,
        )
        if counts["gated"]
        else None,
        "removed_of_all": average(
            lambda r: r.budget["removed_weights"] / r.budget["parameters"]["all"],
            FRACTION_DECIMALS,
        ),
        "macs_kept_fraction": average(
            lambda r: r.budget["macs"]["kept"] / r.budget["macs"]["dense"], FRACTION_DECIMALS
        ),
        "extra_parameters_fraction": round(counts["gates"] / counts["all"], FRACTION_DECIMALS + 2),
        "gated_weights": counts["gated"],
        "all": counts["all"],
        "trainable": counts["trainable"],
        "start_perplexity": average(lambda r: r.start.perplexity, SCORE_DECIMALS),
        "loss": average(lambda r: r.final.loss, FRACTION_DECIMALS),
        "perplexity": average(lambda r: r.final.perplexity, SCORE_DECIMALS),
        "bits_per_character": average(lambda r: r.final.bits_per_character, FRACTION_DECIMALS),
        "compact_perplexity_difference": float(
            f"{max(c.perplexity_difference for c in shrunk):.1e}"
        )
        if shrunk
        else None,
        "compact_same_tokens": min(c.same_tokens / c.greedy_tokens for c in shrunk)
        if shrunk
        else None,
    }
