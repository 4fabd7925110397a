"""Meanings (who does what to whom, where) and the sentences that express them.

An `Event` is a meaning. `express` chooses a wording: synonyms, determiners, active or passive
voice, place first or last. Two wordings of one event are paraphrases by construction, and every
relation between sentences is computed on events, never on words.

Agreement: the finite verb takes the number of its subject, whatever stands between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

from finegates.tasks.language.lexicon import (
    ADJECTIVES,
    KINDS,
    NOUNS,
    PLACES,
    VERBS,
    Noun,
    Verb,
    Word,
)

Wording = TypeVar("Wording")

DETERMINERS = {False: ("the", "this", "one"), True: ("the", "these", "some")}
"""Determiners by plurality of their noun; they carry number and nothing else."""


@dataclass(frozen=True)
class Phrase:
    """A participant: a noun with its number, perhaps an adjective, perhaps somebody beside it."""

    noun: Noun
    plural: bool
    adjective: Word | None = None
    beside: Phrase | None = None


@dataclass(frozen=True)
class Event:
    """`agent` does (or, if `negated`, does not) `verb` to `patient`, perhaps at a `place`."""

    agent: Phrase
    verb: Verb
    patient: Phrase
    place: Word | None = None
    negated: bool = False


def draw_phrase(
    rng: Random, *, adjective: float = 0.3, kind: float = 0.15, avoid: tuple[Noun, ...] = ()
) -> Phrase:
    """Draw a participant; `adjective` and `kind` are the chances of an adjective and a hypernym.

    Concepts in `avoid`, their kinds and their members are not drawn, so that participants of one
    event are never comparable.
    """
    pool = KINDS if rng.random() < kind else NOUNS
    noun = rng.choice([noun for noun in pool if not any(comparable(noun, a) for a in avoid)])
    chosen = rng.choice(ADJECTIVES) if rng.random() < adjective else None
    return Phrase(noun, rng.random() < 0.5, chosen)


def comparable(one: Noun, other: Noun) -> bool:
    """Whether one noun is the other or its kind."""
    return one == other or one.kind == other or one == other.kind


def draw_event(
    rng: Random,
    *,
    adjective: float = 0.25,
    kind: float = 0.15,
    place: float = 0.25,
    beside: float = 0.1,
    negated: float = 0.1,
) -> Event:
    """Draw an event; each keyword is the chance of that component being present."""
    agent = draw_phrase(rng, adjective=adjective, kind=kind)
    patient = draw_phrase(rng, adjective=adjective, kind=kind, avoid=(agent.noun,))
    if rng.random() < beside:
        bystander = draw_phrase(rng, adjective=0.0, kind=kind, avoid=(agent.noun, patient.noun))
        agent = replace(agent, beside=bystander)
    where = rng.choice(PLACES) if rng.random() < place else None
    return Event(agent, rng.choice(VERBS), patient, where, rng.random() < negated)


def choose_wording(wordings: Sequence[Wording], rng: Random) -> Wording:
    """Choose among synonyms, the first of them three times as often as each other one."""
    return rng.choices(wordings, weights=(3, *(1 for _ in wordings[1:])))[0]


def noun_phrase(phrase: Phrase, rng: Random) -> list[str]:
    """Words of a participant: determiner, adjective, noun, and "near" with who is beside it."""
    words = [rng.choices(DETERMINERS[phrase.plural], weights=(8, 1, 1))[0]]
    if phrase.adjective is not None:
        words.append(choose_wording(phrase.adjective.wordings, rng))
    words.append(choose_wording(phrase.noun.wordings, rng)[phrase.plural])
    if phrase.beside is not None:
        words += ["near", *noun_phrase(phrase.beside, rng)]
    return words


def predicate(verb: Verb, plural: bool, negated: bool, passive: bool, rng: Random) -> list[str]:
    """Words of the verb, agreeing with a subject of the given number."""
    plain, singular, participle = choose_wording(verb.wordings, rng)
    if passive:
        return ["are" if plural else "is", *(["not"] if negated else []), participle, "by"]
    if negated:
        return ["do" if plural else "does", "not", plain]
    return [plain if plural else singular]


def express(
    event: Event, rng: Random, *, passive: float = 0.15, place_first: float = 0.15
) -> list[str]:
    """Choose a wording of an event; the keywords are chances. Returns the words, no full stop."""
    in_passive = rng.random() < passive
    subject, other = (event.patient, event.agent) if in_passive else (event.agent, event.patient)
    words = [
        *noun_phrase(subject, rng),
        *predicate(event.verb, subject.plural, event.negated, in_passive, rng),
        *noun_phrase(other, rng),
    ]
    if event.place is None:
        return words
    where = ["in", "the", choose_wording(event.place.wordings, rng)]
    return where + words if rng.random() < place_first else words + where


QUESTIONS = ("who acts", "who suffers", "where", "whether")
"""What a question asks about an event: its agent, its patient, its place, or if it is so."""


def ask(event: Event, about: str, rng: Random) -> list[str]:
    """Word a question about an event, leaving out what is asked; ends with "?".

    Raises:
        ValueError: `about` is not one of `QUESTIONS`.
    """
    agent, patient = event.agent, event.patient
    plain, singular, participle = choose_wording(event.verb.wordings, rng)
    passive = rng.random() < 0.15
    if about == "who acts":
        if passive:
            words = ["by", "whom", "are" if patient.plural else "is"]
            words += [*noun_phrase(patient, rng), participle]
        else:
            words = ["who", singular, *noun_phrase(patient, rng)]
    elif about == "who suffers":
        if passive:
            words = ["who", "is", participle, "by", *noun_phrase(agent, rng)]
        else:
            words = ["whom", "do" if agent.plural else "does", *noun_phrase(agent, rng), plain]
    elif about in ("where", "whether"):
        words = ["where"] if about == "where" else []
        if passive:
            words += ["are" if patient.plural else "is", *noun_phrase(patient, rng)]
            words += [participle, "by", *noun_phrase(agent, rng)]
        else:
            words += ["do" if agent.plural else "does", *noun_phrase(agent, rng), plain]
            words += noun_phrase(patient, rng)
    else:
        raise ValueError(f"unknown question {about!r}; known: {', '.join(QUESTIONS)}")
    return [*words, "?"]
