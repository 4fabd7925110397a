"""Relations of events: entailment, contradiction, neutrality, similarity.

All functions map events to events, so that labels are correct by construction. A statement without
negation entails weaker ones: a hypernym instead of a concept, or without adjective, place or time.
For a negated statement only paraphrases are used.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from finegates.suite.data.language.grammar import Event, concept_of, roles_of, with_role
from finegates.suite.data.language.lexicon import ROLES, Concept, opposite

CLIMB, DROP = 0.35, 0.3
"""Chances that an implied statement names a kind, and that it drops an optional part."""

THINGS = ("subject", "object")
OPTIONAL = ("adjective", "place", "time")


def comparable(one: Concept, other: Concept) -> bool:
    """Whether one concept is the other or its kind."""
    return one == other or one.kind == other or one == other.kind


def changed(event: Event, rng: Random, role: str | None = None) -> Event:
    """Replace the concept of a role (default: random) by an incomparable one."""
    role = rng.choice(roles_of(event)) if role is None else role
    present = concept_of(event, role)
    others = [c for c in ROLES[role] if present is None or not comparable(c, present)]
    return with_role(event, role, rng.choice(others))


def entailed(event: Event, rng: Random) -> Event:
    """An entailed event: the same or, without negation, a weaker one."""
    if event.negated:
        return event
    for role in THINGS:
        concept = concept_of(event, role)
        if concept is not None and concept.kind is not None and rng.random() < CLIMB:
            event = with_role(event, role, concept.kind)
    for role in OPTIONAL:
        if rng.random() < DROP:
            event = with_role(event, role, None)
    return event


def contradicting(event: Event, rng: Random) -> Event:
    """A contradiction: a negated consequence, or the opposite verb."""
    if event.negated:
        return replace(event, negated=False)
    weaker = entailed(event, rng)
    if rng.random() < 0.5:
        return replace(weaker, negated=True)
    return replace(weaker, verb=opposite(event.verb))


def undetermined(event: Event, rng: Random) -> Event:
    """An event that is neither implied nor contradicted.

    It has another participant, place or time, or states more than is known.
    """
    weaker = entailed(event, rng)
    more = [role for role in OPTIONAL if concept_of(event, role) is None]
    general = [role for role in THINGS if names_kind(event, role)]
    if not event.negated and (more or general) and rng.random() < 0.4:
        role = rng.choice(more + general)
        concept = concept_of(event, role)
        members = [c for c in ROLES[role] if concept is None or c.kind == concept]
        return with_role(weaker, role, rng.choice(members))
    return changed(weaker, rng, rng.choice([r for r in roles_of(weaker) if r != "verb"]))


def names_kind(event: Event, role: str) -> bool:
    """Whether a hypernym fills the role."""
    return any(c.kind == concept_of(event, role) for c in ROLES[role] if c.kind)


def similarity(one: Event, other: Event) -> float:
    """5 x the mean similarity over the roles that either event fills.

    The similarity of a role is 1 for the same concept, 1/2 for concepts of one kind or a concept
    and its kind, and 0 otherwise.
    """
    roles = [role for role in ROLES if role in {*roles_of(one), *roles_of(other)}]
    return 5 * sum(_alike(concept_of(one, r), concept_of(other, r)) for r in roles) / len(roles)


def _alike(one: Concept | None, other: Concept | None) -> float:
    if one is None or other is None:
        return float(one is other)
    if one == other:
        return 1.0
    return 0.5 if comparable(one, other) or (one.kind and one.kind == other.kind) else 0.0


def graded(event: Event, rng: Random) -> Event:
    """An event of random similarity, with a random number of roles changed."""
    roles = roles_of(event)
    for role in rng.sample(roles, rng.randint(0, len(roles))):
        event = changed(event, rng, role)
    return event
