"""Tables of the three experiments on Llama: on a task, posttraining, pretraining.

Numbers are means over seeds of what the records hold; a blank stands where a record has nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from finegates.causal.record import CausalRecord
from finegates.record import Record
from finegates.stats import mean
from finegates.tables.captions import table_caption, task_title
from finegates.tables.render import BLANK, Table
from finegates.tables.runs import FRACTION_DECIMALS, SCORE_DECIMALS, target_sparsity

if TYPE_CHECKING:
    import pandas as pd

_DIGEST_DIGITS = 12


def llama_task_table(
    records: Sequence[Record], methods: Sequence[str], tasks: Sequence[str]
) -> Table:
    """Scores of a Llama as a classifier, and what each method removed, by every denominator.

    Args:
        records: of one tier.
        methods: labels, in the order of the rows.
        tasks: in the order of the groups of rows.

    Raises:
        ValueError: see ``finegates.tables.captions.check_study``.
    """
    rows = [
        _task_row(task, method, found)
        for task in tasks
        for method in methods
        if (found := [r for r in records if (r.task, r.method) == (task, method)])
    ]
    lead = (
        "Scores after the last epoch, and the weights of gated layers that compaction removes: in "
        "numbers, and as a fraction of the gated weights, of the parameters of the layer stack, "
        "and of all parameters, embeddings and head included."
    )
    return Table(
        name="llama-task",
        title=f"Llama on a task (tier {records[0].tier})" if records else "Llama on a task",
        caption=table_caption(lead, records, methods, tasks),
        numbers=_frame(rows, ("removed_weights", "gated_weights", "encoder", "all", "trainable")),
        header=(
            "Task, method",
            "Score",
            "Target (%)",
            "Realised (%)",
            "Removed",
            "of gated (%)",
            "of layers (%)",
            "of all (%)",
            "Trainable",
            "Seeds",
        ),
        cells=tuple(
            (
                f"{task_title(row['task'])}, {row['title']}",
                _number(row["score"], 1),
                _percent(row["target"]),
                _percent(row["realised_sparsity"]),
                _count(row["removed_weights"]),
                _percent(row["removed_of_gated"]),
                _percent(row["removed_of_encoder"]),
                _percent(row["removed_of_all"]),
                _count(row["trainable"]),
                str(row["seeds"]),
            )
            for row in rows
        ),
        rule_before=_group_starts([row["task"] for row in rows]),
    )


def _task_row(task: str, method: str, found: list[Record]) -> dict[str, Any]:
    def average(value: Callable[[Record], float], decimals: int) -> float:
        return round(mean(map(value, found)), decimals) + 0.0

    def part(name: str) -> Callable[[Record], float]:
        return lambda r: r.budget["removed_weights"] / r.budget["parameters"][name]

    first = found[0].budget["parameters"]
    # Without gates nothing is gated: the denominator is unknown, and nothing was removed.
    gated = first["gated"] or None
    return {
        "tier": found[0].tier,
        "task": task,
        "method": method,
        "title": found[0].config["title"],
        "seeds": len(found),
        "score": average(lambda r: r.last.score, SCORE_DECIMALS),
        "target": target_sparsity(found[0]),
        "realised_sparsity": average(lambda r: r.realised_sparsity, FRACTION_DECIMALS),
        "removed_weights": average(lambda r: r.budget["removed_weights"], 0),
        "removed_of_gated": average(part("gated"), FRACTION_DECIMALS) if gated else None,
        "removed_of_encoder": average(part("encoder"), FRACTION_DECIMALS),
        "removed_of_all": average(part("all"), FRACTION_DECIMALS),
        "gated_weights": gated,
        "encoder": first["encoder"],
        "all": first["all"],
        "trainable": average(lambda r: r.budget["parameters"]["trainable"], 0),
        "compact_max_abs_logit_difference": None
        if found[0].compact is None
        else max(r.compact.max_abs_logit_difference for r in found if r.compact is not None),
    }


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
        "lm_head are as they were. One-shot pruning closes in each layer as many rows and columns "
        "as the gated run of the same target and is not trained. Realised sparsity: gated weights "
        "in closed rows or columns; removed: weights that compaction leaves out, of all "
        "parameters. At the start: perplexity with gates attached, before training."
    )
    return Table(
        name="llama-posttraining",
        title=f"Posttraining without a task (tier {tier})",
        caption=causal_caption(lead, records),
        numbers=_frame(rows, _COUNTS),
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
                _percent(row["target"]),
                _percent(row["realised_sparsity"]),
                _count(row["removed_weights"]),
                _percent(row["removed_of_all"]),
                _percent(row["macs_kept_fraction"]),
                _number(row["start_perplexity"], 3),
                _number(row["perplexity"], 3),
                _number(row["bits_per_character"], 4),
                str(row["seeds"]),
            )
            for row in rows
        ),
        rule_before=_group_starts([(row["name"], row["method"]) for row in rows]),
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
        numbers=_frame(rows, (*_COUNTS, "tokens", "tokens_to_dense_loss")),
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
                _percent(row["target"]),
                _percent(row["realised_sparsity"]),
                _count(row["removed_weights"]),
                _percent(row["removed_of_all"]),
                _percent(row["macs_kept_fraction"]),
                _number(100 * row["extra_parameters_fraction"], 3),
                _number(row["loss"], 4),
                _number(row["perplexity"], 3),
                _number(row["bits_per_character"], 4),
                _count(row["tokens"]),
                _count(row["tokens_to_dense_loss"]),
                str(row["seeds"]),
            )
            for row in rows
        ),
        rule_before=_group_starts([row["name"] for row in rows]),
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


def causal_caption(lead: str, records: Sequence[CausalRecord]) -> str:
    """A caption: ``lead``, and what the records say of tier, models, text, training, hardware."""
    first = records[0]
    description = str(first.config.get("tier_description", "")).rstrip(".")
    trained = [r for r in records if r.config.get("training")]
    parts = [
        lead,
        f"Tier {first.tier}: {description}." if description else f"Tier {first.tier}.",
        f"Models: {_joined(_model(r) for r in records)}.",
        _text(records),
        f"Held-out text: {_joined(f'{r.final.tokens:,} tokens' for r in records)} "
        f"({_joined(f'{r.final.characters:,} characters' for r in records)}), packed.",
    ]
    if trained:
        parts.append(f"Training: {_joined(_training(r) for r in trained)}.")
    seeds = sorted({r.seed for r in records})
    parts.append(
        f"One seed ({seeds[0]})." if len(seeds) == 1 else f"Seeds {', '.join(map(str, seeds))}."
    )
    parts.append(f"Hardware: {_joined(_machine(r.hardware) for r in records)}.")
    return " ".join(parts)


def check_causal(records: Sequence[CausalRecord], experiment: str) -> str:
    """The records' tier. Raises ValueError: no records, several tiers, another experiment, or two
    of the same run."""
    if not records:
        raise ValueError("no run records: a table needs at least one")
    tiers = sorted({r.tier for r in records})
    if len(tiers) > 1:
        raise ValueError(f"records of several tiers, {tiers}, do not belong in one table")
    others = sorted({r.experiment for r in records} - {experiment})
    if others:
        raise ValueError(f"records of {others} in a table of {experiment}")
    seen = set()
    for r in records:
        key = (r.name, r.method, r.target, r.seed)
        if key in seen:
            raise ValueError(f"two records of {key}")
        seen.add(key)
    return tiers[0]


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


def _model(record: CausalRecord) -> str:
    model = record.model
    facts = [f"{model['parameters']:,} parameters"]
    if model["source"] == "random weights":
        facts.append("trained here from random weights")
    elif model["source"] == "dense":
        facts.append("pretrained here")
    if model.get("revision"):
        facts.append(f"revision {model['revision'][:_DIGEST_DIGITS]}")
    elif model.get("sha256"):
        facts.append(f"digest {model['sha256'][:_DIGEST_DIGITS]}")
    return f"{model['name']} ({', '.join(facts)})"


def _text(records: Sequence[CausalRecord]) -> str:
    data = records[0].data
    if data["source"] == "generated":
        return f"Text: {data['name']}, synthetic: generated sentences, not English."
    facts = []
    if data.get("revision"):
        facts.append(f"revision {data['revision'][:_DIGEST_DIGITS]}")
    facts += [f"{s} digest {d[:_DIGEST_DIGITS]}" for s, d in data.get("sha256", {}).items()]
    facts += [f"{s} [{status}]" for s, status in data.get("status", {}).items() if status]
    return f"Text: {data['name']} ({'; '.join(facts)})." if facts else f"Text: {data['name']}."


def _training(record: CausalRecord) -> str:
    settings = record.config["training"]
    return (
        f"{settings['steps']:,} steps of {settings['batch_size']} x {settings['length']} tokens, "
        f"learning rate {settings['learning_rate']:g}, cosine to {settings['final_rate']:g} of it, "
        f"{settings['precision']}"
    )


def _machine(hardware: dict[str, Any]) -> str:
    threads = hardware["threads"]
    gpu = f", {hardware['gpu']}" if hardware.get("gpu") else ""
    return f"{hardware['cpu']}, {threads} thread{'' if threads == 1 else 's'}{gpu}"


def _frame(rows: Sequence[dict[str, Any]], whole: Sequence[str]) -> pd.DataFrame:
    import pandas as pd

    frame = pd.DataFrame(rows)
    text = ("tier", "task", "name", "model", "method", "title")
    for column in frame.columns:
        if column in whole or column == "seeds":
            frame[column] = frame[column].astype("Float64").astype("Int64")
        elif column not in text:
            frame[column] = frame[column].astype("Float64")
    return frame


def _group_starts(keys: Sequence[object]) -> tuple[int, ...]:
    return tuple(i for i in range(1, len(keys)) if keys[i] != keys[i - 1])


def _percent(fraction: float | None) -> str:
    return _number(None if fraction is None else 100 * fraction, 1)


def _number(value: float | None, decimals: int) -> str:
    return BLANK if value is None else f"{value:,.{decimals}f}"


def _count(number: float | None) -> str:
    return BLANK if number is None else f"{number:,.0f}"


def _joined(texts: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(texts))
