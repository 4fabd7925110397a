"""Unlabelled text of the generated language, for pretraining.

A document is one sentence, or two related ones separated by a tab. The second of two sentences is a
paraphrase, a consequence, a denial or a change of a statement; an answer to a question or another
question; another review or a remark on a review. As in running text, a connective ("so", "but",
"again", ...) often opens the second sentence and names its relation to the first. Neither a
document without its connective nor one of its passages equals a row of a validation or test split.
"""

from __future__ import annotations

from random import Random

from finegates.seeds import derive_seed
from finegates.suite.data.language.grammar import draw_event, express, roles_of
from finegates.suite.data.language.relations import changed, contradicting, entailed, undetermined
from finegates.suite.data.language.reviews import REMARKS, review
from finegates.suite.data.language.tasks import draw_answer, draw_questions, sentence, split_of

SEPARATOR = "\t"
"""Separator of the two passages of a document."""

CONNECTIVES = ("again", "so", "but", "meanwhile", "well", "anyway", "luckily", "sadly")
"""Words that may open the second passage: it repeats the first, follows from it, departs from it
or denies it, tells of something else; it answers a question, or does not; a review was good, or
bad. They mean relations of texts, not classes of a task: "but" joins contradictions as well as
what may be true too, and "again" and "so" what both follow."""

CONNECTED = 0.8
"""Probability that a connective opens the second passage, if one fits."""


def generate_corpus(documents: int, seed: int) -> list[str]:
    """Generate documents for pretraining.

    Arguments:
        documents: number of documents, positive.
        seed: any integer; hashed together with the corpus's name.

    Returns:
        `documents` strings of one sentence, or two separated by a tab. Documents may repeat.

    Raises:
        ValueError: `documents` < 1.
    """
    if documents < 1:
        raise ValueError(f"documents must be at least 1, got {documents}")
    rng = Random(derive_seed("language", "corpus", seed))
    corpus: list[str] = []
    while len(corpus) < documents:
        passages, connective = _draw_document(rng)
        texts = [sentence(words) for words in passages]
        # Checked as a pair and alone, so that connectives do not leak labels of validation rows.
        if any(split_of(*row) != "train" for row in (texts, *zip(texts, strict=True))):
            continue
        if connective and rng.random() < CONNECTED:
            texts[1] = f"{connective} {texts[1]}"
        corpus.append(SEPARATOR.join(texts))
    return corpus


Document = tuple[list[list[str]], str]
"""One or two passages, and the connective that may open the second ("" for none)."""


def _draw_document(rng: Random) -> Document:
    draw = rng.choices(
        (_alone, _review, _reviews, _told_twice, _inferred, _answered, _asked),
        weights=(7, 10, 2, 44, 18, 10, 9),
    )[0]
    return draw(rng)


def _alone(rng: Random) -> Document:
    return [express(draw_event(rng, place=0.25, time=0.25, near=0.7, negated=0.25), rng)], ""


def _review(rng: Random) -> Document:
    positive = rng.random() < 0.5
    return [review(positive, rng), rng.choice(REMARKS).split()], "luckily" if positive else "sadly"


def _reviews(rng: Random) -> Document:
    positive, same = rng.random() < 0.5, rng.random() < 0.5
    return [review(positive, rng), review(positive == same, rng)], "again" if same else "but"


def _told_twice(rng: Random) -> Document:
    event = draw_event(rng, negated=0.1)
    other, changes = event, rng.choices(range(4), weights=(5, 3, 2, 2))[0]
    for role in rng.sample(roles_of(event), min(changes, len(roles_of(event)))):
        other = changed(other, rng, role)
    connective = ("again", "but", "meanwhile", "meanwhile")[changes]
    return [express(event, rng), express(other, rng)], connective


def _inferred(rng: Random) -> Document:
    event = draw_event(rng, kind=0.2, negated=0.2)
    connective, relate = rng.choice(
        (("so", entailed), ("but", undetermined), ("but", contradicting))
    )
    other = relate(event, rng)
    return [express(event, rng), express(other, rng)], "again" if other == event else connective


def _answered(rng: Random) -> Document:
    answers = rng.random() < 0.5
    return list(draw_answer(answers, rng)), "well" if answers else "anyway"


def _asked(rng: Random) -> Document:
    same = rng.random() < 0.5
    return list(draw_questions(same, rng)), "again" if same else "but"
