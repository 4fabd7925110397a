"""Relations between meanings: what follows from an event, what contradicts it, what leaves it open.

Participants are referents ("the dog" is one dog), so naming them less precisely keeps a sentence
true under either polarity: "the big dog does not chase the boy" entails "the animal does not
chase the boy". Leaving out a place keeps it true only without negation.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from finegates.tasks.language.grammar import Event, Phrase, comparable, draw_phrase
from finegates.tasks.language.lexicon import (
    ADJECTIVES,
    KINDS,
    NOUNS,
    OPPOSITE,
    PLACES,
    VERBS,
    Noun,
)

FULL_SCORE = 5.0
"""Similarity of two sentences that mean the same, as in STS-B."""


def generalise(phrase: Phrase, rng: Random, chance: float = 0.5) -> Phrase:
    """Name a participant less precisely: its kind, no adjective, nobody beside it."""
    if phrase.noun.kind is not None and rng.random() < chance:
        phrase = replace(phrase, noun=phrase.noun.kind)
    if rng.random() < chance:
        phrase = replace(phrase, adjective=None)
    return replace(phrase, beside=phrase.beside if rng.random() < 0.3 else None)


def entailed(event: Event, rng: Random) -> Event:
    """Return an event that follows from `event`."""
    keeps_place = event.negated or rng.random() < 0.5
    return replace(
        event,
        agent=generalise(event.agent, rng),
        patient=generalise(event.patient, rng),
        place=event.place if keeps_place else None,
    )


def negate(event: Event) -> Event:
    """Return the event with the other polarity."""
    return replace(event, negated=not event.negated)


def swap_roles(event: Event) -> Event:
    """Return the event with agent and patient exchanged, each keeping its own description."""
    return replace(event, agent=event.patient, patient=event.agent)


def contradicting(event: Event, rng: Random) -> Event:
    """Return an event that excludes `event`: other polarity, or an opposite adjective.

    Negation is flipped on what `event` entails; a participant is described by the opposite
    adjective at the same polarity when it has one.
    """
    agent, patient = event.agent, event.patient
    if (agent.adjective or patient.adjective) and rng.random() < 0.5:
        if agent.adjective and (not patient.adjective or rng.random() < 0.5):
            agent, patient = _opposite(agent), generalise(patient, rng)
        else:
            agent, patient = generalise(agent, rng), _opposite(patient)
        return replace(event, agent=agent, patient=patient)
    return negate(entailed(event, rng))


def undetermined(event: Event, rng: Random) -> Event:
    """Return an event that `event` neither entails nor excludes, at either polarity."""
    change = rng.choice((_swap, _rename_agent, _rename_patient, _change_verb, _specialise))
    result = change(event if change is _specialise else entailed(event, rng), rng)
    return negate(result) if rng.random() < 0.3 else result


def altered(event: Event, rng: Random) -> Event:
    """Return an event that differs in one respect: agent, verb, patient, polarity or roles."""
    changes = [_swap, _swap, _negate, _change_verb, _change_verb]
    changes += 2 * [_rename_agent, _rename_patient]
    if event.agent.adjective != event.patient.adjective:
        changes.append(_swap_adjectives)
    return rng.choice(changes)(event, rng)


def graded(event: Event, rng: Random) -> tuple[Event, float]:
    """Return an event that shares only some components with `event`, and their similarity.

    Agent, verb, patient and place are each kept, changed, or (participants) named by their kind;
    roles may be exchanged. How many change is drawn first, so that all degrees occur.
    """
    roles = rng.sample(("agent", "verb", "patient", "place"), rng.randrange(5))
    other = event
    if "agent" in roles and "patient" in roles and rng.random() < 0.3:
        other = swap_roles(other)
        roles = [role for role in roles if role not in ("agent", "patient")]
    if "agent" in roles:
        other = _rename_agent(other, rng)
    if "patient" in roles:
        other = _rename_patient(other, rng)
    if "verb" in roles:
        other = _change_verb(other, rng)
    if "place" in roles:
        other = _move(other, rng)
    if rng.random() < 0.2:
        other = replace(other, agent=generalise(other.agent, rng))
    return other, similarity(event, other)


def similarity(one: Event, other: Event) -> float:
    """Similarity of two events: 5 · Σ weight · agreement over agent, verb, patient, place.

    Weights are 0.3, 0.25, 0.3, 0.15. Agreement of nouns is 1 for the same concept, 0.7 for a
    concept and its kind, 0.4 for two of one kind, otherwise 0; elsewhere it is 1 or 0.
    """
    agreement = (
        0.3 * noun_similarity(one.agent.noun, other.agent.noun)
        + 0.25 * (one.verb == other.verb)
        + 0.3 * noun_similarity(one.patient.noun, other.patient.noun)
        + 0.15 * (one.place == other.place)
    )
    return FULL_SCORE * agreement


def noun_similarity(one: Noun, other: Noun) -> float:
    """Agreement of two nouns: same concept 1, concept and its kind 0.7, same kind 0.4, else 0."""
    if one == other:
        return 1.0
    if comparable(one, other):
        return 0.7
    return 0.4 if one.kind is not None and one.kind == other.kind else 0.0


def _rename(phrase: Phrase, event: Event, rng: Random) -> Phrase:
    """Put another concept in a participant's place, half the time one of the same kind."""
    taken = (event.agent.noun, event.patient.noun)
    pool = KINDS if phrase.noun.kind is None else NOUNS
    siblings = [noun for noun in pool if noun.kind == phrase.noun.kind and noun not in taken]
    if siblings and rng.random() < 0.5:
        return replace(phrase, noun=rng.choice(siblings))
    stranger = draw_phrase(rng, kind=float(phrase.noun.kind is None), avoid=taken)
    return replace(phrase, noun=stranger.noun)


def _rename_agent(event: Event, rng: Random) -> Event:
    return replace(event, agent=_rename(event.agent, event, rng))


def _rename_patient(event: Event, rng: Random) -> Event:
    return replace(event, patient=_rename(event.patient, event, rng))


def _change_verb(event: Event, rng: Random) -> Event:
    return replace(event, verb=rng.choice([verb for verb in VERBS if verb != event.verb]))


def _move(event: Event, rng: Random) -> Event:
    return replace(event, place=rng.choice([p for p in (*PLACES, None) if p != event.place]))


def _opposite(phrase: Phrase) -> Phrase:
    assert phrase.adjective is not None
    return replace(phrase, adjective=OPPOSITE[phrase.adjective])


def _swap(event: Event, _: Random) -> Event:
    return swap_roles(event)


def _negate(event: Event, _: Random) -> Event:
    return negate(event)


def _swap_adjectives(event: Event, _: Random) -> Event:
    agent, patient = event.agent, event.patient
    return replace(
        event,
        agent=replace(agent, adjective=patient.adjective),
        patient=replace(patient, adjective=agent.adjective),
    )


def _specialise(event: Event, rng: Random) -> Event:
    """Say more than is known: an adjective, a place, or a concept where only its kind was given."""
    agent, patient = event.agent, event.patient
    if agent.noun.kind is None:
        members = [noun for noun in NOUNS if noun.kind == agent.noun]
        return replace(event, agent=replace(agent, noun=rng.choice(members)))
    if patient.noun.kind is None:
        members = [noun for noun in NOUNS if noun.kind == patient.noun]
        return replace(event, patient=replace(patient, noun=rng.choice(members)))
    if event.place is None and not event.negated and rng.random() < 0.5:
        return replace(event, place=rng.choice(PLACES))
    if agent.adjective is None:
        return replace(event, agent=replace(agent, adjective=rng.choice(ADJECTIVES)))
    return _rename_agent(event, rng)
