"""Captions of the Llama tables and figures, composed from run records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from finegates.suite.runs.llama_record import CausalRecord, TextTraining
from finegates.suite.runs.run_record import DIGEST_DIGITS


def causal_caption(lead: str, records: Sequence[CausalRecord]) -> str:
    """A caption: ``lead``, then tier, models, text, training and hardware."""
    first = records[0]
    description = first.config.tier_description.rstrip(".")
    trained = [r.config.training for r in records if r.config.training is not None]
    parts = [
        lead,
        f"Tier {first.tier}: {description}." if description else f"Tier {first.tier}.",
        f"Models: {_joined(_model(r) for r in records)}.",
        _text(records),
        f"Held-out text: {_joined(f'{r.final.tokens:,} tokens' for r in records)} "
        f"({_joined(f'{r.final.characters:,} characters' for r in records)}), packed.",
    ]
    if trained:
        parts.append(f"Training: {_joined(map(_training, trained))}.")
    seeds = sorted({r.seed for r in records})
    parts.append(
        f"One seed ({seeds[0]})." if len(seeds) == 1 else f"Seeds {', '.join(map(str, seeds))}."
    )
    parts.append(f"Hardware: {_joined(str(r.hardware) for r in records)}.")
    return " ".join(parts)


def check_causal(records: Sequence[CausalRecord], experiment: str) -> str:
    """Checks the records of an experiment and returns their tier.

    Raises:
        ValueError: there are no records, records of several tiers or of another experiment, or two
            of the same run.
    """
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


def _model(record: CausalRecord) -> str:
    model = record.model
    facts = [f"{model.parameters:,} parameters"]
    if model.source == "random weights":
        facts.append("trained here from random weights")
    elif model.source == "dense":
        facts.append("pretrained here")
    return f"{model.name} ({', '.join([*facts, *model.identity])})"


def _text(records: Sequence[CausalRecord]) -> str:
    data = records[0].data
    if data.source == "generated":
        return f"Text: {data.name}, synthetic: generated sentences, not English."
    facts = [f"revision {data.revision[:DIGEST_DIGITS]}"] if data.revision else []
    facts += [f"{split} digest {digest[:DIGEST_DIGITS]}" for split, digest in data.sha256.items()]
    facts += [f"{split} [{status}]" for split, status in data.status.items() if status]
    return f"Text: {data.name} ({'; '.join(facts)})." if facts else f"Text: {data.name}."


def _training(settings: TextTraining) -> str:
    return (
        f"{settings.steps:,} steps of {settings.batch_size} x {settings.length} tokens, "
        f"learning rate {settings.learning_rate:g}, cosine to {settings.final_rate:g} of it, "
        f"{settings.precision}"
    )


def _joined(texts: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(texts))
