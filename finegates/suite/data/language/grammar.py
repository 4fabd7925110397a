"""Events (who does what, where, when) and sentences that express them.

An `Event` is a meaning. `express` chooses its wording among synonyms. The word order is fixed:

    [adjective] subject [near neighbour] verb object [place] [time]

Two wordings of one event are paraphrases by construction. All relations between sentences are
computed on events, never on words. The finite verb agrees in number with its subject, across all
words between them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from finegates.suite.data.language.lexicon import (
    NEIGHBOURS,
    ROLES,
    Concept,
    kinds,
    plural,
    third_person,
)


@dataclass(frozen=True)
class Event:
    """`subject` does (or, if `negated`, does not) `verb` an `object`, perhaps somewhere, sometime.

    `plural` is the number of the subject. `near` is a thing near the subject, with its number.
    """

    subject: Concept
    verb: Concept
    object: Concept
    adjective: Concept | None = None
    place: Concept | None = None
    time: Concept | None = None
    plural: bool = False
    near: tuple[Concept, bool] | None = None
    negated: bool = False


def concept_of(event: Event, role: str) -> Concept | None:
    """The concept that fills a role of an event, if there is one."""
    concept: Concept | None = getattr(event, role)
    return concept


def with_role(event: Event, role: str, concept: Concept | None) -> Event:
    """The event with a role filled by another concept, or left empty."""
    return replace(event, **{role: concept})  # type: ignore[arg-type]


def roles_of(event: Event) -> list[str]:
    """The roles that an event fills."""
    return [role for role in ROLES if concept_of(event, role) is not None]


def draw_event(
    rng: Random,
    *,
    kind: float = 0.1,
    adjective: float = 0.25,
    place: float = 0.35,
    time: float = 0.35,
    near: float = 0.0,
    negated: float = 0.0,
) -> Event:
    """Draw an event.

    Each keyword is a probability: of a hypernym as subject or object (`kind`), of an optional part,
    or of negation.
    """

    def pick(role: str, chance: float = 1.0) -> Concept | None:
        return rng.choice(ROLES[role]) if rng.random() < chance else None

    def thing(role: str) -> Concept:
        return rng.choice(kinds(role) if rng.random() < kind else ROLES[role])

    return Event(
        subject=thing("subject"),
        verb=rng.choice(ROLES["verb"]),
        object=thing("object"),
        adjective=pick("adjective", adjective),
        place=pick("place", place),
        time=pick("time", time),
        plural=rng.random() < 0.5,
        near=(rng.choice(NEIGHBOURS), rng.random() < 0.5) if rng.random() < near else None,
        negated=rng.random() < negated,
    )


def subject_words(event: Event, rng: Random) -> list[str]:
    """Words of the subject with its adjective and neighbour."""
    words = []
    if event.adjective is not None:
        words.append(rng.choice(event.adjective.wordings))
    words.append(_numbered(event.subject, event.plural, rng))
    if event.near is not None:
        words += ["near", _numbered(*event.near, rng)]
    return words


def adjunct_words(event: Event, rng: Random, *, asked: str | None = None) -> list[str]:
    """Words of place and time, if present, without the role `asked`."""
    words = []
    if event.place is not None and asked != "place":
        words.append(rng.choice(event.place.wordings))
    if event.time is not None and asked != "time":
        words.append(rng.choice(event.time.wordings))
    return words


def express(event: Event, rng: Random) -> list[str]:
    """Choose a wording of an event. Returns its words without a full stop."""
    verb = rng.choice(event.verb.wordings)
    if event.negated:
        predicate = [_do(event), "not", verb]
    else:
        predicate = [verb if event.plural else third_person(verb)]
    return [
        *subject_words(event, rng),
        *predicate,
        rng.choice(event.object.wordings),
        *adjunct_words(event, rng),
    ]


QUESTIONS = {"who": "subject", "what": "object", "where": "place", "when": "time"}
"""Question words and the roles that they ask for."""


def ask(event: Event, about: str, rng: Random) -> list[str]:
    """Word a question about a role of an event, ending with "?".

    `about` is one of `QUESTIONS`, or "whether" for a yes-no question.
    """
    adjuncts = adjunct_words(event, rng, asked=QUESTIONS.get(about))
    verb, thing = rng.choice(event.verb.wordings), [rng.choice(event.object.wordings)]
    if about == "who":
        return ["who", third_person(verb), *thing, *adjuncts, "?"]
    opening = [] if about == "whether" else [about]
    thing = [] if about == "what" else thing
    return [*opening, _do(event), *subject_words(event, rng), verb, *thing, *adjuncts, "?"]


def _do(event: Event) -> str:
    return "do" if event.plural else "does"


def _numbered(concept: Concept, several: bool, rng: Random) -> str:
    noun = rng.choice(concept.wordings)
    return plural(noun) if several else noun
