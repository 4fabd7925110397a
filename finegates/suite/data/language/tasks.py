"""Eight labelled tasks in the generated language, with the format of GLUE.

Columns, label values and metrics are GLUE's. The text is synthetic, and labels are computed from
events. Classes are balanced. Single words carry little information: both labels of a pair use the
same constructions and differ only in the concepts that share a role.

Splits are disjoint by construction: the hash of a row's text determines its split (70 % train, 20 %
validation, 10 % test), for every seed and number of rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pyarrow

from finegates.seeds import derive_seed
from finegates.suite.config.suggest import nearest
from finegates.suite.config.tasks import task_named
from finegates.suite.data.language.grammar import (
    QUESTIONS,
    Event,
    ask,
    concept_of,
    draw_event,
    express,
    with_role,
)
from finegates.suite.data.language.lexicon import NEIGHBOURS, ROLES, third_person
from finegates.suite.data.language.relations import (
    changed,
    contradicting,
    entailed,
    graded,
    similarity,
    undetermined,
)
from finegates.suite.data.language.reviews import review

Row = tuple[tuple[str, ...], float]
"""Text columns and label of one example."""

SPLITS = {"train": range(0, 7), "validation": range(7, 9), "test": range(9, 10)}
"""Tenths of the hash range that belong to each split."""


def sentence(words: list[str]) -> str:
    """Join words into a sentence, with a full stop unless it is a question."""
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
    form = task_named(task)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}{nearest(split, SPLITS)}")
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    rng = Random(derive_seed("language", task, split, seed))
    classes = [number % form.num_labels for number in range(rows)]
    rng.shuffle(classes)
    texts: list[tuple[str, ...]] = []
    labels: list[float] = []
    seen: set[tuple[str, ...]] = set()
    for wanted in classes:
        while True:
            text, label = DRAW[task](wanted, rng)
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
        if form.labels is None
        else pyarrow.array([int(label) for label in labels], pyarrow.int64())
    )
    columns["idx"] = pyarrow.array(range(rows), pyarrow.int32())
    return pyarrow.table(columns, metadata={"source": f"synthetic: generated language, {task}"})


def _pair(one: Event, other: Event, rng: Random) -> tuple[str, ...]:
    return sentence(express(one, rng)), sentence(express(other, rng))


def _draw_acceptability(label: int, rng: Random) -> Row:
    event = draw_event(rng, place=0.25, time=0.25, negated=0.25)
    if rng.random() < 0.7:
        # Mostly a neighbour of the other number, as an attractor for the verb's agreement.
        pulls = rng.random() < 0.7
        neighbour = rng.choice(NEIGHBOURS)
        event = replace(event, near=(neighbour, event.plural != pulls))
    words = express(event, rng)
    return (sentence(words if label == 1 else violate(words, rng)),), label


_OTHER_NUMBER = {"do": "does", "does": "do"}
for _verb in (wording for concept in ROLES["verb"] for wording in concept.wordings):
    _OTHER_NUMBER |= {_verb: third_person(_verb), third_person(_verb): _verb}


def violate(words: list[str], rng: Random) -> list[str]:
    """Return an unacceptable version of a sentence, of the same length.

    Three in four have the finite verb in the wrong number. In the others two different adjacent
    words are swapped.
    """
    broken = list(words)
    if rng.random() < 0.25:
        at = rng.randrange(len(words) - 1)
        broken[at], broken[at + 1] = broken[at + 1], broken[at]
    else:
        at = next(at for at, word in enumerate(words) if word in _OTHER_NUMBER)
        broken[at] = _OTHER_NUMBER[words[at]]
    return broken


def _draw_sentiment(label: int, rng: Random) -> Row:
    return (sentence(review(bool(label), rng)),), label


def _draw_paraphrase(label: int, rng: Random) -> Row:
    event = draw_event(rng)
    return _pair(event, event if label == 1 else changed(event, rng), rng), label


def _draw_similarity(_: int, rng: Random) -> Row:
    event = draw_event(rng)
    other = graded(event, rng)
    return _pair(event, other, rng), similarity(event, other)


def _draw_duplicate(label: int, rng: Random) -> Row:
    one, other = draw_questions(label == 1, rng)
    return (sentence(one), sentence(other)), label


def draw_questions(same: bool, rng: Random) -> tuple[list[str], list[str]]:
    """Word two questions, equivalent or with a different concept or role."""
    event, about = draw_event(rng), rng.choice(list(QUESTIONS))
    asked = about
    other = event
    if not same and rng.random() < 0.15:
        asked = rng.choice([question for question in QUESTIONS if question != about])
    elif not same:
        hidden = {QUESTIONS[about], *(("adjective",) if about == "who" else ())}
        shown = [r for r in ROLES if r not in hidden and concept_of(event, r) is not None]
        other = changed(event, rng, rng.choice(shown))
    return ask(event, about, rng), ask(other, asked, rng)


def _draw_inference(label: int, rng: Random) -> Row:
    # A third of the premises and of the hypotheses of each label are negated.
    event = draw_event(rng, kind=0.2, negated=1 / 3)
    return _pair(event, (entailed, undetermined, contradicting)[label](event, rng), rng), label


def _draw_entailment(label: int, rng: Random) -> Row:
    event = draw_event(rng, kind=0.2)
    other = entailed(event, rng) if label == 0 else undetermined(event, rng)
    if label == 1 and rng.random() < 0.2:
        other = changed(entailed(event, rng), rng, "verb")
    return _pair(event, other, rng), label


def _draw_answering(label: int, rng: Random) -> Row:
    question, told = draw_answer(label == 0, rng)
    return (sentence(question), sentence(told)), label


def draw_answer(answers: bool, rng: Random) -> tuple[list[str], list[str]]:
    """Word a question and a sentence that may answer it.

    The sentence answers it, lacks the answer, or is about another event.
    """
    about = rng.choice(list(QUESTIONS))
    role = QUESTIONS[about]
    told = draw_event(rng, kind=0.0, adjective=0.15)
    lacks = not answers and role in ("place", "time") and rng.random() < 0.5
    if role in ("place", "time"):
        told = with_role(told, role, None if lacks else rng.choice(ROLES[role]))
    # The question repeats the statement without the asked role and, often, the other adjunct.
    asked = replace(told, adjective=None)
    for adjunct in ("place", "time"):
        if rng.random() < 0.5:
            asked = with_role(asked, adjunct, None)
    if not answers and not lacks:
        asked = changed(
            asked, rng, rng.choice([r for r in ("subject", "verb", "object") if r != role])
        )
    return ask(asked, about, rng), express(told, rng)


DRAW: dict[str, Callable[[int, Random], Row]] = {
    "cola": _draw_acceptability,
    "sst2": _draw_sentiment,
    "mrpc": _draw_paraphrase,
    "stsb": _draw_similarity,
    "qqp": _draw_duplicate,
    "mnli": _draw_inference,
    "qnli": _draw_answering,
    "rte": _draw_entailment,
}
"""How to draw a row of a given class, by GLUE's name of the task."""
