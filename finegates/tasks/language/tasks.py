"""Eight labelled tasks in the generated language, shaped exactly like those of GLUE.

Columns, label values and metrics are GLUE's; the text is synthetic. Labels are computed from
meanings. Classes are balanced, and single words say little: both labels of a pair use the same
constructions, and most differences are in who does what to whom.

Splits are disjoint by construction: a row belongs to the split that the hash of its text falls
into (70 % train, 20 % validation, 10 % test), whatever the seed and the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from random import Random

import pyarrow

from finegates.seeds import derive_seed
from finegates.suggest import nearest
from finegates.tasks.language.grammar import (
    DETERMINERS,
    QUESTIONS,
    Event,
    ask,
    draw_event,
    draw_phrase,
    express,
)
from finegates.tasks.language.lexicon import VERBS
from finegates.tasks.language.relations import (
    altered,
    contradicting,
    entailed,
    graded,
    swap_roles,
    undetermined,
)
from finegates.tasks.language.reviews import review

Row = tuple[tuple[str, ...], float]
"""Text columns and label of one example."""

SPLITS = {"train": range(0, 7), "validation": range(7, 9), "test": range(9, 10)}
"""Tenths of the hash range that belong to each split."""


@dataclass(frozen=True)
class LanguageTask:
    """Text columns, number of classes (1: a float score) and how to draw a row of given class."""

    columns: tuple[str, ...]
    classes: int
    draw: Callable[[int, Random], Row]


def sentence(words: list[str]) -> str:
    """Join words into a sentence, with a full stop unless it ends in a question mark."""
    return " ".join(words if words[-1] == "?" else [*words, "."])


def split_of(*texts: str) -> str:
    """Return the split that a row with these texts belongs to."""
    tenth = derive_seed("split", *texts) % 10
    return next(name for name, tenths in SPLITS.items() if tenth in tenths)


def generate_task(task: str, split: str, rows: int, seed: int) -> pyarrow.Table:
    """Generate `rows` distinct rows of one split of one task.

    Arguments:
        task: cola, sst2, mrpc, qqp, stsb, mnli, qnli or rte.
        split: train, validation or test; rows of different splits never share their text.
        rows: number of rows, positive.
        seed: any integer; it is hashed together with the names of task and split.

    Returns:
        A table with GLUE's text columns (string), `label` (int64; float32 in [0, 5] for stsb) and
        `idx` (int32, 0 to rows - 1). Classes alternate at random in equal numbers (± 1).

    Raises:
        ValueError: unknown task or split (names the nearest known one), or `rows` < 1.
    """
    _require_known(task, TASKS, "task")
    _require_known(split, SPLITS, "split")
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    form = TASKS[task]
    rng = Random(derive_seed("language", task, split, seed))
    classes = [number % form.classes for number in range(rows)]
    rng.shuffle(classes)
    texts: list[tuple[str, ...]] = []
    labels: list[float] = []
    seen: set[tuple[str, ...]] = set()
    for wanted in classes:
        while True:
            text, label = form.draw(wanted, rng)
            if text not in seen and split_of(*text) == split:
                break
        seen.add(text)
        texts.append(text)
        labels.append(label)
    columns = {
        name: pyarrow.array([text[place] for text in texts], pyarrow.string())
        for place, name in enumerate(form.columns)
    }
    columns["label"] = (
        pyarrow.array(labels, pyarrow.float32())
        if form.classes == 1
        else pyarrow.array([int(label) for label in labels], pyarrow.int64())
    )
    columns["idx"] = pyarrow.array(range(rows), pyarrow.int32())
    return pyarrow.table(columns, metadata={"source": f"synthetic: generated language, {task}"})


def _require_known(name: str, names: Iterable[str], what: str) -> None:
    if name not in names:
        raise ValueError(f"unknown {what} {name!r}{nearest(name, names)}")


def _draw_acceptability(label: int, rng: Random) -> Row:
    event = draw_event(rng, adjective=0.3, place=0.25, beside=0.6, negated=0.25)
    if event.agent.beside is not None and rng.random() < 0.7:
        # A neighbour of the other number pulls the verb away from its subject.
        neighbour = replace(event.agent.beside, plural=not event.agent.plural)
        event = replace(event, agent=replace(event.agent, beside=neighbour))
    words = express(event, rng, passive=0.25)
    if label == 1:
        return (sentence(words),), 1
    return (sentence(violate(words, rng)),), 0


_VERB_FORMS = {form: forms for verb in VERBS for forms in verb.wordings for form in forms[:2]}
_AUXILIARIES = {"do": "does", "does": "do", "is": "are", "are": "is"}
_OTHER_NUMBER = {
    determiner: [other for other in DETERMINERS[not plural] if other != "the"]
    for plural, determiners in DETERMINERS.items()
    for determiner in determiners
    if determiner != "the"
}


def violate(words: list[str], rng: Random) -> list[str]:
    """Return an unacceptable version of a sentence: wrong agreement, determiner or word order.

    Wrong agreement replaces the finite verb by its form for the other number; about two thirds
    of the violations are of this kind. No change adds or removes a word.
    """
    changed = list(words)
    kind = rng.random()
    determined = [at for at, word in enumerate(words) if word in _OTHER_NUMBER]
    if kind < 0.15 and determined:
        at = rng.choice(determined)
        changed[at] = rng.choice(_OTHER_NUMBER[changed[at]])
        return changed
    if kind < 0.35:
        while changed == words:
            at = rng.randrange(len(words) - 1)
            changed[at], changed[at + 1] = changed[at + 1], changed[at]
        return changed
    auxiliary = next((at for at, word in enumerate(words) if word in _AUXILIARIES), None)
    if auxiliary is not None:
        changed[auxiliary] = _AUXILIARIES[changed[auxiliary]]
        return changed
    at = next(at for at, word in enumerate(words) if word in _VERB_FORMS)
    plain, singular, _ = _VERB_FORMS[changed[at]]
    changed[at] = plain if changed[at] == singular else singular
    return changed


def _draw_sentiment(label: int, rng: Random) -> Row:
    return (sentence(review(bool(label), rng)),), label


def _draw_paraphrase(label: int, rng: Random) -> Row:
    event = draw_event(rng, adjective=0.3)
    other = event if label == 1 else altered(event, rng)
    return (sentence(express(event, rng)), sentence(express(other, rng))), label


def _draw_duplicate(label: int, rng: Random) -> Row:
    event = draw_event(rng, adjective=0.3, beside=0.1, negated=0.0)
    about = rng.choice(QUESTIONS)
    if label == 1:
        return (sentence(ask(event, about, rng)), sentence(ask(event, about, rng))), 1
    other, asked = unlike_question(event, about, rng)
    return (sentence(ask(event, about, rng)), sentence(ask(other, asked, rng))), 0


def unlike_question(event: Event, about: str, rng: Random) -> tuple[Event, str]:
    """Draw an event and what is asked about it so that the question differs from the given one."""
    if rng.random() < 0.25:
        return event, rng.choice([question for question in QUESTIONS if question != about])
    other = event
    # The same draws word both questions, so they are equal when the change does not show.
    while ask(other, about, Random(0)) == ask(event, about, Random(0)):
        other = altered(event, rng)
    return other, about


def _draw_similarity(_: int, rng: Random) -> Row:
    event = draw_event(rng, adjective=0.0, beside=0.0, place=0.6, negated=0.0)
    other, score = graded(event, rng)
    return (sentence(express(event, rng)), sentence(express(other, rng))), score


def _draw_inference(label: int, rng: Random) -> Row:
    event = draw_event(rng, adjective=0.3, negated=0.2)
    other = (entailed, undetermined, contradicting)[label](event, rng)
    return (sentence(express(event, rng)), sentence(express(other, rng))), label


def draw_answer(answers: bool, rng: Random) -> tuple[Event, str, Event]:
    """Draw an event, what is asked about it, and an event that does or does not answer."""
    about = rng.choice(QUESTIONS)
    told = draw_event(rng, kind=0.05, place=0.4, negated=0.0)
    if about == "where" and (answers or rng.random() < 0.6):
        told = replace(told, place=draw_event(rng, place=1.0).place)
    asked = replace(
        told, agent=entailed(told, rng).agent, patient=entailed(told, rng).patient, place=None
    )
    if about == "whether" and rng.random() < 0.4:
        told = replace(told, negated=True)
    if answers:
        return asked, about, told
    if about == "where" and told.place is None:
        return asked, about, told
    change = rng.random()
    if change < 0.2:
        return asked, about, swap_roles(told)
    if change < 0.5:
        return asked, about, replace(told, verb=rng.choice([v for v in VERBS if v != told.verb]))
    known = (told.agent.noun, told.patient.noun)
    stranger = draw_phrase(rng, kind=0.0, avoid=(*known, *(n.kind for n in known if n.kind)))
    if about == "who acts":
        return asked, about, replace(told, patient=stranger)
    return asked, about, replace(told, agent=stranger)


def _draw_answering(label: int, rng: Random) -> Row:
    asked, about, told = draw_answer(label == 0, rng)
    return (sentence(ask(asked, about, rng)), sentence(express(told, rng))), label


def _draw_entailment(label: int, rng: Random) -> Row:
    event = draw_event(rng, adjective=0.3, beside=0.4, negated=0.15)
    if label == 0:
        other = entailed(event, rng)
    elif event.agent.beside is not None and rng.random() < 0.3:
        # The bystander, nearer to the verb, is taken for the agent.
        other = entailed(replace(event, agent=event.agent.beside), rng)
    else:
        other = (undetermined if rng.random() < 0.6 else contradicting)(event, rng)
    return (sentence(express(event, rng)), sentence(express(other, rng))), label


TASKS: dict[str, LanguageTask] = {
    "cola": LanguageTask(("sentence",), 2, _draw_acceptability),
    "sst2": LanguageTask(("sentence",), 2, _draw_sentiment),
    "mrpc": LanguageTask(("sentence1", "sentence2"), 2, _draw_paraphrase),
    "qqp": LanguageTask(("question1", "question2"), 2, _draw_duplicate),
    "stsb": LanguageTask(("sentence1", "sentence2"), 1, _draw_similarity),
    "mnli": LanguageTask(("premise", "hypothesis"), 3, _draw_inference),
    "qnli": LanguageTask(("question", "sentence"), 2, _draw_answering),
    "rte": LanguageTask(("sentence1", "sentence2"), 2, _draw_entailment),
}
"""The eight tasks by GLUE's names."""
