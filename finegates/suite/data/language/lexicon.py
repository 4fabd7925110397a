"""The lexicon of the generated language: concepts, synonyms and hypernyms.

A concept has two interchangeable wordings (synonyms). Subjects and objects also belong to a kind,
their hypernym. Every word is one token and belongs to exactly one concept and one role, so that a
word determines its role in the sentence and its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Concept:
    """A meaning, with its synonyms (`wordings`) and hypernym (`kind`), if any."""

    wordings: tuple[str, ...]
    kind: Concept | None = None


def _concepts(entries: str, kind: str | None = None) -> tuple[Concept, ...]:
    """Read "word/synonym word/synonym ..." into concepts of one kind."""
    hypernym = None if kind is None else Concept(tuple(kind.split("/")))
    return tuple(Concept(tuple(entry.split("/")), hypernym) for entry in entries.split())


def plural(noun: str) -> str:
    """The plural of a noun of this language. All are regular."""
    return noun + "s"


def third_person(verb: str) -> str:
    """The third person singular of a verb of this language. All are regular."""
    return verb + ("es" if verb.endswith("sh") else "s")


ROLES: dict[str, tuple[Concept, ...]] = {
    "subject": (
        *_concepts("dog/hound cat/feline horse/steed", kind="animal/beast"),
        *_concepts("doctor/medic singer/vocalist pilot/aviator", kind="worker/employee"),
    ),
    "verb": _concepts("find/discover lose/misplace push/nudge pull/drag buy/purchase sell/trade"),
    "object": (
        *_concepts("cake/tart soup/broth bun/roll", kind="snack/treat"),
        *_concepts("ball/sphere doll/puppet drum/tambour", kind="toy/plaything"),
    ),
    "adjective": _concepts("big/large small/little old/aged young/youthful"),
    "place": _concepts("indoors/inside outdoors/outside upstairs/above downstairs/below"),
    "time": _concepts("soon/shortly later/afterwards daily/everyday yearly/annually"),
}
"""Concepts by the role that they play in an event. Verbs come in pairs of opposites."""

NEIGHBOURS: tuple[Concept, ...] = _concepts("tree car gate wall lamp")
"""What a subject may be near to."""

ASPECTS: tuple[Concept, ...] = _concepts("plot/story acting/cast music/score")
"""What a film review speaks about."""

PRAISE: tuple[Concept, ...] = _concepts("good/great clever/smart funny/witty lovely/charming")
CRITICISM: tuple[Concept, ...] = _concepts("bad/awful stupid/silly dull/boring ugly/hideous")


def kinds(role: str) -> tuple[Concept, ...]:
    """The hypernyms among a role's concepts, empty for most roles."""
    return tuple(dict.fromkeys(concept.kind for concept in ROLES[role] if concept.kind))


def opposite(verb: Concept) -> Concept:
    """The antonym of a verb."""
    return ROLES["verb"][ROLES["verb"].index(verb) ^ 1]
