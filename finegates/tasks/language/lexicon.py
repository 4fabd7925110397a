"""The words of the generated language and what they mean: concepts, their synonyms and their kinds.

A concept owns one or more interchangeable wordings (synonyms). A noun concept also belongs to a
kind, its hypernym, which is itself a noun. Adjectives come in pairs of opposites. Every word is
one token, and no word belongs to two concepts, so that meaning can be read off the words.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """A thing that acts: `wordings` are its synonyms as (singular, plural); `kind` its hypernym."""

    wordings: tuple[tuple[str, str], ...]
    kind: Noun | None = None

    @property
    def name(self) -> str:
        """The first singular wording, which identifies the concept."""
        return self.wordings[0][0]


@dataclass(frozen=True)
class Verb:
    """An action: `wordings` are its synonyms as (plain, third person singular, participle)."""

    wordings: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Word:
    """A concept whose form never changes (adjective, place, aspect): `wordings` are synonyms."""

    wordings: tuple[str, ...]


def _nouns(kind: str, members: str) -> tuple[Noun, ...]:
    """Read "singular/synonym ..." into concepts of one kind; plurals follow `_plural`."""
    hypernym = Noun(_pairs(kind))
    return tuple(Noun(_pairs(member), hypernym) for member in members.split())


def _pairs(wordings: str) -> tuple[tuple[str, str], ...]:
    return tuple((word, _plural(word)) for word in wordings.split("/"))


def _plural(word: str) -> str:
    irregular = {"child": "children", "thief": "thieves"}
    if word in irregular:
        return irregular[word]
    if word.endswith(("s", "ch", "sh", "x")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def _verb(wordings: str) -> Verb:
    """Read "chase+d/meet+=met": after "+" stands the ending, or after "+=" the whole participle."""
    forms = []
    for wording in wordings.split("/"):
        plain, _, ending = wording.partition("+")
        participle = ending[1:] if ending.startswith("=") else plain + ending
        forms.append((plain, _plural(plain), participle))
    return Verb(tuple(forms))


def _words(entries: str) -> tuple[Word, ...]:
    return tuple(Word(tuple(entry.split("/"))) for entry in entries.split())


NOUNS: tuple[Noun, ...] = (
    *_nouns("animal/beast", "dog/hound horse/steed pig/hog rabbit/bunny snake/serpent"),
    *_nouns("worker/employee", "doctor/physician lawyer/attorney pilot/aviator guard/sentry"),
    *_nouns("artist/performer", "singer/vocalist poet/bard writer/author actor/player"),
    *_nouns("child/kid", "boy/lad girl/lass baby/infant pupil/student"),
    *_nouns("criminal/crook", "thief/robber killer/murderer pirate/raider liar/cheat"),
)
KINDS: tuple[Noun, ...] = tuple(dict.fromkeys(noun.kind for noun in NOUNS if noun.kind))

VERBS: tuple[Verb, ...] = tuple(
    _verb(entry)
    for entry in (
        "chase+d/pursue+d",
        "help+ed/assist+ed",
        "watch+ed/observe+d",
        "praise+d/applaud+ed",
        "fear+ed/dread+ed",
        "call+ed/phone+d",
        "blame+d/accuse+d",
        "push+ed/shove+d",
        "visit+ed/meet+=met",
        "trust+ed/believe+d",
    )
)

OPPOSITES: tuple[tuple[Word, Word], ...] = tuple(
    (_words(left)[0], _words(right)[0])
    for left, right in (
        ("big/large", "small/little"),
        ("fast/quick", "slow/sluggish"),
        ("rich/wealthy", "poor/needy"),
        ("smart/clever", "foolish/silly"),
        ("brave/bold", "timid/shy"),
    )
)
ADJECTIVES: tuple[Word, ...] = tuple(word for pair in OPPOSITES for word in pair)
OPPOSITE: dict[Word, Word] = {a: b for a, b in OPPOSITES} | {b: a for a, b in OPPOSITES}

PLACES: tuple[Word, ...] = _words(
    "garden/yard street/road shop/store forest/woods castle/palace valley/dale"
)

ASPECTS: tuple[Word, ...] = _words("film/movie plot/story acting/cast music/score script/dialogue")
PRAISE: tuple[Word, ...] = _words("good/great lovely/charming funny/witty moving/touching")
CRITICISM: tuple[Word, ...] = _words("bad/awful dull/boring weak/feeble ugly/hideous")
