"""Unlabelled text of the generated language, for pretraining.

A document is one sentence, or two that belong together, separated by a tab: a statement and its
paraphrase, what follows from it or denies it, a question and its answer, a review and its
verdict. Most pairs name their relation with a discourse marker ("surely", "perhaps", "never",
...) that opens the second passage, as running text may do. Predicting markers teaches relations
(Nie, Bennett and Goodman 2019, "DisSent"; Jernite, Bowman and Sontag 2017).
No document equals a row of a validation or test split (markers aside).
"""

from __future__ import annotations

from random import Random

from finegates.seeds import derive_seed
from finegates.tasks.language.grammar import QUESTIONS, ask, draw_event, express
from finegates.tasks.language.relations import (
    altered,
    contradicting,
    entailed,
    graded,
    undetermined,
)
from finegates.tasks.language.reviews import VERDICTS, review
from finegates.tasks.language.tasks import draw_answer, sentence, split_of, unlike_question

SEPARATOR = "\t"
"""Stands between the two passages of a document."""

MARKERS: dict[str, tuple[str, ...]] = {
    "follows": ("surely", "certainly"),
    "open": ("perhaps", "maybe"),
    "denied": ("never", "falsely"),
    "same": ("again", "likewise"),
    "other": ("instead", "whereas"),
    "answer": ("well", "indeed"),
    "evasion": ("anyway", "meanwhile"),
    "identical": ("exactly",),
    "close": ("mostly",),
    "related": ("partly",),
    "unlike": ("barely",),
    "liked": ("bravo",),
    "disliked": ("alas",),
}
"""Discourse markers by the relation that they name; each opens the second passage."""

MARKER_WORDS: tuple[str, ...] = tuple(word for words in MARKERS.values() for word in words)
"""All discourse markers."""

MARKED = 0.8
"""Chance that a document whose relation has a marker shows it."""


def generate_corpus(documents: int, seed: int) -> list[str]:
    """Generate documents for pretraining.

    Arguments:
        documents: how many, positive.
        seed: any integer; hashed together with the corpus's name.

    Returns:
        `documents` strings: one sentence, or two separated by a tab. Repetitions may occur.

    Raises:
        ValueError: `documents` < 1.
    """
    if documents < 1:
        raise ValueError(f"documents must be at least 1, got {documents}")
    rng = Random(derive_seed("language", "corpus", seed))
    corpus: list[str] = []
    while len(corpus) < documents:
        passages, relation = _draw_document(rng)
        texts = [sentence(words) for words in passages]
        if split_of(*texts) != "train":
            continue
        if relation is not None and rng.random() < MARKED:
            marker = rng.choice(MARKERS[relation])
            texts[1:] = [" ".join([marker, *texts[1:]])]
        corpus.append(SEPARATOR.join(texts))
    return corpus


def _draw_document(rng: Random) -> tuple[list[list[str]], str | None]:
    """Draw one or two passages and the relation that a marker may name."""
    draw = rng.choices(
        (_alone, _review, _restated, _inferred, _answered, _asked, _compared),
        weights=(12, 12, 16, 24, 14, 10, 12),
    )[0]
    return draw(rng)


def _alone(rng: Random) -> tuple[list[list[str]], str | None]:
    return [express(draw_event(rng, beside=0.6, negated=0.25), rng)], None


def _review(rng: Random) -> tuple[list[list[str]], str | None]:
    positive = rng.random() < 0.5
    if rng.random() < 0.5:
        return [review(positive, rng)], "liked" if positive else "disliked"
    return [review(positive, rng), rng.choice(VERDICTS[positive]).split()], None


def _restated(rng: Random) -> tuple[list[list[str]], str | None]:
    event = draw_event(rng, adjective=0.3)
    same = rng.random() < 0.6
    other = event if same else altered(event, rng)
    return [express(event, rng), express(other, rng)], "same" if same else "other"


def _inferred(rng: Random) -> tuple[list[list[str]], str | None]:
    event = draw_event(rng, adjective=0.3, negated=0.2, beside=0.2)
    relation, relate = rng.choice(
        (("follows", entailed), ("open", undetermined), ("denied", contradicting))
    )
    return [express(event, rng), express(relate(event, rng), rng)], relation


def _answered(rng: Random) -> tuple[list[list[str]], str | None]:
    answers = rng.random() < 0.6
    asked, about, told = draw_answer(answers, rng)
    return [ask(asked, about, rng), express(told, rng)], "answer" if answers else "evasion"


def _asked(rng: Random) -> tuple[list[list[str]], str | None]:
    event = draw_event(rng, adjective=0.3, beside=0.1, negated=0.0)
    about = rng.choice(QUESTIONS)
    if rng.random() < 0.5:
        return [ask(event, about, rng), ask(event, about, rng)], "same"
    other, asked = unlike_question(event, about, rng)
    return [ask(event, about, rng), ask(other, asked, rng)], "other"


def _compared(rng: Random) -> tuple[list[list[str]], str | None]:
    event = draw_event(rng, adjective=0.0, beside=0.0, place=0.6, negated=0.0)
    other, score = graded(event, rng)
    degree = (
        "identical"
        if score > 4.2
        else "close"
        if score > 3.0
        else ("related" if score > 1.5 else "unlike")
    )
    return [express(event, rng), express(other, rng)], degree
