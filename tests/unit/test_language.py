"""Laws of the generated language: determinism, GLUE's shapes, disjoint splits, meaning."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from random import Random

import numpy
import pyarrow
import pytest

from finegates.seeds import SEED_LIMIT, derive_seed, seed_everything
from finegates.tasks.bag_of_words import TEXT_COLUMNS, bag_of_words_score, marked_texts
from finegates.tasks.language import SEPARATOR, TASKS, generate_corpus, generate_task
from finegates.tasks.language.grammar import DETERMINERS, QUESTIONS, ask, draw_event, express
from finegates.tasks.language.lexicon import (
    ADJECTIVES,
    ASPECTS,
    CRITICISM,
    KINDS,
    NOUNS,
    PLACES,
    PRAISE,
    VERBS,
)
from finegates.tasks.language.relations import (
    altered,
    contradicting,
    entailed,
    noun_similarity,
    similarity,
    undetermined,
)
from finegates.tasks.language.tasks import split_of, violate

ROWS = 120
EVENTS = 300

PLURAL = {word: False for noun in (*NOUNS, *KINDS) for word, _ in noun.wordings} | {
    word: True for noun in (*NOUNS, *KINDS) for _, word in noun.wordings
}
DETERMINER_PLURAL = {
    word: plural for plural, words in DETERMINERS.items() for word in words if word != "the"
}
VERB_PLURAL = {forms[0]: True for verb in VERBS for forms in verb.wordings} | {
    forms[1]: False for verb in VERBS for forms in verb.wordings
}
AUXILIARY_PLURAL = {"does": False, "is": False, "do": True, "are": True}


def agrees(words: list[str]) -> bool:
    """Whether determiners fit their nouns and the finite verb fits its subject."""
    number: bool | None = None
    subject: bool | None = None
    after_near = False
    for word in words:
        if word in DETERMINER_PLURAL:
            number = DETERMINER_PLURAL[word]
        elif word == "near":
            after_near = True
        elif word in PLURAL:
            if number not in (None, PLURAL[word]):
                return False
            number = None
            if subject is None and not after_near:
                subject = PLURAL[word]
        elif word in AUXILIARY_PLURAL:
            return subject == AUXILIARY_PLURAL[word]
        elif word in VERB_PLURAL:
            return subject == VERB_PLURAL[word]
    return False


@pytest.mark.parametrize("task", TASKS)
def test_same_names_give_the_same_rows_and_other_seeds_other_rows(task: str) -> None:
    once, again = (generate_task(task, "train", ROWS, seed=3) for _ in range(2))
    assert once.equals(again)
    assert not once.equals(generate_task(task, "train", ROWS, seed=4))


@pytest.mark.parametrize("task", TASKS)
def test_columns_types_and_labels_are_those_of_glue(task: str) -> None:
    table = generate_task(task, "validation", ROWS, seed=0)
    assert table.column_names == [*TEXT_COLUMNS[task], "label", "idx"]
    assert all(table.schema.field(name).type == pyarrow.string() for name in TEXT_COLUMNS[task])
    assert table.schema.field("idx").type == pyarrow.int32()
    assert table["idx"].to_pylist() == list(range(ROWS))
    labels = table["label"].to_pylist()
    if task == "stsb":
        assert table.schema.field("label").type == pyarrow.float32()
        assert all(0 <= label <= 5 for label in labels)
        assert numpy.std(labels) > 1
    else:
        assert table.schema.field("label").type == pyarrow.int64()
        counts = Counter(labels)
        assert set(counts) == set(range(3 if task == "mnli" else 2))
        assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("task", TASKS)
def test_splits_share_no_text_whatever_their_seeds(task: str) -> None:
    def texts(split: str, seed: int) -> set[tuple[str, ...]]:
        table = generate_task(task, split, ROWS, seed)
        rows = list(zip(*(table[name].to_pylist() for name in TEXT_COLUMNS[task]), strict=True))
        assert len(set(rows)) == len(rows) == ROWS
        assert {split_of(*row) for row in rows} == {split}
        return set(rows)

    assert not texts("train", 0) & texts("validation", 1)


def test_an_unknown_task_or_split_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(ValueError, match="'colaa'.*did you mean 'cola'"):
        generate_task("colaa", "train", 1, seed=0)
    with pytest.raises(ValueError, match="'validaton'.*did you mean 'validation'"):
        generate_task("cola", "validaton", 1, seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        generate_task("cola", "train", 0, seed=0)
    with pytest.raises(ValueError, match="'sst'.*did you mean 'sst2'"):
        bag_of_words_score(pyarrow.table({}), pyarrow.table({}), "sst")
    with pytest.raises(ValueError, match="unknown question 'why'"):
        ask(draw_event(Random(0)), "why", Random(0))


def test_the_corpus_is_deterministic_and_holds_no_validation_row() -> None:
    corpus = generate_corpus(400, seed=1)
    assert corpus == generate_corpus(400, seed=1)
    assert corpus != generate_corpus(400, seed=2)
    assert {document.count(SEPARATOR) for document in corpus} == {0, 1}
    for task, columns in TEXT_COLUMNS.items():
        table = generate_task(task, "validation", ROWS, seed=1)
        rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
        assert not set(corpus) & {SEPARATOR.join(row) for row in rows}
    with pytest.raises(ValueError, match="at least 1"):
        generate_corpus(0, seed=1)


def test_no_word_belongs_to_two_concepts() -> None:
    words = [word for noun in (*NOUNS, *KINDS) for pair in noun.wordings for word in pair]
    words += [word for verb in VERBS for forms in verb.wordings for word in set(forms)]
    for group in (ADJECTIVES, PLACES, ASPECTS, PRAISE, CRITICISM):
        words += [word for concept in group for word in concept.wordings]
    assert [word for word, count in Counter(words).items() if count > 1] == []


def test_every_expressed_event_agrees_and_every_violated_one_differs_in_no_length() -> None:
    rng = Random(0)
    for _ in range(EVENTS):
        words = express(draw_event(rng, beside=0.5, negated=0.3), rng)
        assert agrees(words), " ".join(words)
        broken = violate(words, rng)
        assert broken != words
        assert len(broken) == len(words)


def test_acceptable_rows_agree_and_most_unacceptable_ones_do_not() -> None:
    table = generate_task("cola", "train", ROWS, seed=0)
    outcome: dict[int, list[bool]] = {0: [], 1: []}
    for text, label in zip(table["sentence"].to_pylist(), table["label"].to_pylist(), strict=True):
        outcome[label].append(agrees(text.split()[:-1]))
    assert all(outcome[1])
    assert numpy.mean(outcome[0]) < 0.5  # the others are wrong in word order


def test_entailment_names_participants_by_their_kind() -> None:
    rng = Random(0)
    climbed = 0
    for _ in range(EVENTS):
        event = draw_event(rng)
        weaker = entailed(event, rng)
        assert weaker.negated == event.negated
        for before, after in ((event.agent, weaker.agent), (event.patient, weaker.patient)):
            assert after.noun in (before.noun, before.noun.kind)
            assert after.plural == before.plural
            climbed += after.noun != before.noun
    assert climbed > EVENTS / 4
    table = generate_task("mnli", "train", ROWS, seed=0)
    kinds = {word for kind in KINDS for pair in kind.wordings for word in pair}
    assert sum(bool(kinds & set(text.split())) for text in table["hypothesis"].to_pylist()) > 30


def test_relations_change_the_meaning_as_they_promise() -> None:
    rng = Random(0)
    for _ in range(EVENTS):
        event = draw_event(rng, adjective=0.5, negated=0.3)
        assert altered(event, rng) != event
        opposed = contradicting(event, rng)
        assert opposed.negated != event.negated or opposed != event
        assert undetermined(event, rng) != event


def test_similarity_is_full_for_the_same_meaning_symmetric_and_graded_by_kind() -> None:
    rng = Random(0)
    for _ in range(EVENTS):
        one, other = draw_event(rng), draw_event(rng)
        assert similarity(one, one) == pytest.approx(5)
        assert 0 <= similarity(one, other) == similarity(other, one) <= 5
    dog, horse = NOUNS[:2]
    stranger = next(noun for noun in NOUNS if noun.kind != dog.kind)
    assert dog.kind is not None
    degrees = [noun_similarity(dog, noun) for noun in (dog, dog.kind, horse, stranger)]
    assert degrees == sorted(degrees, reverse=True)
    assert len(set(degrees)) == 4


def test_a_question_leaves_out_what_it_asks_for() -> None:
    rng = Random(0)
    for _ in range(EVENTS):
        event = draw_event(rng, kind=0.0)
        for about in QUESTIONS:
            words = set(ask(event, about, rng))
            if about == "who acts":
                assert not words & {w for pair in event.agent.noun.wordings for w in pair}
            if about == "who suffers":
                assert not words & {w for pair in event.patient.noun.wordings for w in pair}


def test_words_are_marked_with_their_side() -> None:
    table = pyarrow.table({"question": ["Who runs ?"], "sentence": ["he runs ."]})
    assert marked_texts(table, "qnli") == ["1:who 1:runs 1:? 2:he 2:runs 2:."]
    assert marked_texts(table.to_pandas(), "qnli") == marked_texts(table, "qnli")
    with pytest.raises(ValueError, match="'premise' is missing"):
        marked_texts(table, "mnli")


def test_word_counts_hardly_predict_who_acts_on_whom_but_do_predict_planted_words() -> None:
    train = generate_task("mrpc", "train", 400, seed=0)
    validation = generate_task("mrpc", "validation", 200, seed=0)
    truth = numpy.array(validation["label"].to_pylist())
    assert numpy.mean(bag_of_words_score(train, validation, "mrpc") == truth) < 0.62

    def planted(table: pyarrow.Table) -> pyarrow.Table:
        rows = zip(table["sentence2"].to_pylist(), table["label"].to_pylist(), strict=True)
        texts = [f"{text} planted" if label else text for text, label in rows]
        place = table.column_names.index("sentence2")
        return table.set_column(place, "sentence2", pyarrow.array(texts))

    found = bag_of_words_score(planted(train), planted(validation), "mrpc")
    assert numpy.mean(found == truth) > 0.98


def test_scores_are_predicted_as_real_numbers() -> None:
    train = generate_task("stsb", "train", 100, seed=0)
    found = bag_of_words_score(train, generate_task("stsb", "validation", 50, seed=0), "stsb")
    assert found.shape == (50,)
    assert numpy.issubdtype(found.dtype, numpy.floating)


def test_seeds_depend_on_names_alone_and_on_their_borders() -> None:
    forward = {name: derive_seed("run", name) for name in ("cola", "rte", 0, 1)}
    backward = {name: derive_seed("run", name) for name in (1, 0, "rte", "cola")}
    assert forward == backward
    assert len(set(forward.values())) == 4
    assert derive_seed("ab", "c") != derive_seed("a", "bc")
    assert derive_seed("a", "b") != derive_seed("b", "a")
    assert all(0 <= seed < SEED_LIMIT for seed in forward.values())
    with pytest.raises(ValueError, match="at least one name"):
        derive_seed()


def test_seeding_repeats_the_draws_of_every_library() -> None:
    import random

    import torch

    def draws() -> tuple[float, float, float]:
        seed_everything(5)
        from_numpy = float(numpy.random.rand())  # noqa: NPY002 - the global state is the subject
        return random.random(), from_numpy, float(torch.rand(()))

    assert draws() == draws()
    with pytest.raises(ValueError, match="must be in"):
        seed_everything(-1)


def test_the_language_needs_no_torch() -> None:
    code = (
        "import sys, finegates.seeds, finegates.tasks.language, finegates.tasks.bag_of_words;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
