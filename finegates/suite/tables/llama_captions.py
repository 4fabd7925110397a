"""Captions of tables and figures on Llama, composed from run records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from finegates.suite.runs.llama_record import CausalRecord
from finegates.suite.tables.captions import DIGEST_DIGITS


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


def _model(record: CausalRecord) -> str:
    model = record.model
    facts = [f"{model['parameters']:,} parameters"]
    if model["source"] == "random weights":
        facts.append("trained here from random weights")
    elif model["source"] == "dense":
        facts.append("pretrained here")
    if model.get("revision"):
        facts.append(f"revision {model['revision'][:DIGEST_DIGITS]}")
    elif model.get("sha256"):
        facts.append(f"digest {model['sha256'][:DIGEST_DIGITS]}")
    return f"{model['name']} ({', '.join(facts)})"


def _text(records: Sequence[CausalRecord]) -> str:
    data = records[0].data
    if data["source"] == "generated":
        return f"Text: {data['name']}, synthetic: generated sentences, not English."
    facts = []
    if data.get("revision"):
        facts.append(f"revision {data['revision'][:DIGEST_DIGITS]}")
    facts += [f"{s} digest {d[:DIGEST_DIGITS]}" for s, d in data.get("sha256", {}).items()]
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


def _joined(texts: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(texts))
