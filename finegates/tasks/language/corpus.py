"""Unlabelled text of the generated language, for pretraining.

A document is one sentence, or two that belong together, separated by a tab: a statement and its
paraphrase, what follows from it, denies it or changes it, a question and its answer, a review and
its verdict. As in running text, a connective ("so", "but", "maybe", ...) often opens the second.
No document equals a row of a validation or test split.
"""

from __future__ import annotations

from random import Random

from finegates.seeds import derive_seed
from finegates.tasks.language.grammar import ask, draw_event, express
from finegates.tasks.language.relations import changed, contradicting, entailed, undetermined
from finegates.tasks.language.reviews import VERDICTS, review
from finegates.tasks.language.tasks import draw_answer, draw_questions, sentence, split_of

SEPARATOR = "\t"
"""Stands between the two passages of a document."""

CONNECTED = 0.4
"""Chance that a connective opens the second passage, where one fits."""


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
        passages, connective = _draw_document(rng)
        texts = [sentence(words) for words in passages]
        if split_of(*texts) != "train":
            continue
        if connective and rng.random() < CONNECTED:
            texts[1] = f"{connective} {texts[1]}"
        corpus.append(SEPARATOR.join(texts))
    return corpus


Document = tuple[list[list[str]], str]
"""One or two passages, and the connective that may open the second ("" for none)."""


def _draw_document(rng: Random) -> Document:
    draw = rng.choices(
        (_alone, _review, _restated, _inferred, _answered, _asked, _confirmed),
        weights=(7, 6, 58, 13, 7, 5, 4),
    )[0]
    return draw(rng)


def _alone(rng: Random) -> Document:
    return [express(draw_event(rng, place=0.25, time=0.25, near=0.7, negated=0.25), rng)], ""


def _review(rng: Random) -> Document:
    positive = rng.random() < 0.5
    if rng.random() < 0.3:
        return [review(positive, rng)], ""
    return [review(positive, rng), rng.choice(VERDICTS[positive]).split()], ""


def _restated(rng: Random) -> Document:
    event = draw_event(rng, adjective=0.15, kind=0.05, negated=0.05)
    same = rng.random() < 0.8
    other = event if same else changed(event, rng)
    return [express(event, rng), express(other, rng)], "again" if same else "but"


def _inferred(rng: Random) -> Document:
    event = draw_event(rng, kind=0.2, negated=0.3)
    connective, relate = rng.choice(
        (("so", entailed), ("maybe", undetermined), ("never", contradicting))
    )
    return [express(event, rng), express(relate(event, rng), rng)], connective


def _answered(rng: Random) -> Document:
    answers = rng.random() < 0.7
    return list(draw_answer(answers, rng)), "well" if answers else "anyway"


def _asked(rng: Random) -> Document:
    same = rng.random() < 0.6
    return list(draw_questions(same, rng)), "again" if same else "but"


def _confirmed(rng: Random) -> Document:
    event = draw_event(rng)
    yes = rng.random() < 0.5
    other = event if yes else changed(event, rng)
    return [ask(event, "whether", rng), express(other, rng)], "yes" if yes else "no"
