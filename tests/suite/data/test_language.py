"""Laws of the generated language: determinism, GLUE's shapes, disjoint splits, meaning."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from random import Random

import numpy
import pyarrow
import pytest

from finegates.seeds import SEED_LIMIT, derive_seed, seed_everything
from finegates.suite.config.tasks import TASKS, DataError
from finegates.suite.data.bag_of_words import bag_of_words_score, constant_predictions, marked_texts
from finegates.suite.data.language import CONNECTIVES, SEPARATOR, generate_corpus, generate_task
from finegates.suite.data.language.grammar import (
    QUESTIONS,
    Event,
    ask,
    concept_of,
    draw_event,
    express,
    roles_of,
)
from finegates.suite.data.language.lexicon import (
    ASPECTS,
    CRITICISM,
    NEIGHBOURS,
    PRAISE,
    ROLES,
    Concept,
    kinds,
    opposite,
    plural,
    third_person,
)
from finegates.suite.data.language.relations import (
    changed,
    contradicting,
    entailed,
    graded,
    similarity,
    undetermined,
)
from finegates.suite.data.language.tasks import split_of, violate

ROWS = 120
EVENTS = 300

SUBJECTS = {w for concept in (*ROLES["subject"], *kinds("subject")) for w in concept.wordings}
VERBS = {w for concept in ROLES["verb"] for w in concept.wordings}
IS_PLURAL = {w: False for w in SUBJECTS} | {plural(w): True for w in SUBJECTS}
IS_PLURAL_VERB = {w: True for w in VERBS} | {third_person(w): False for w in VERBS}
IS_PLURAL_VERB |= {"do": True, "does": False}


def agrees(words: list[str]) -> bool:
    """Whether the first verb has the number of the subject."""
    subject = next(IS_PLURAL[word] for word in words if word in IS_PLURAL)
    return subject == next(IS_PLURAL_VERB[word] for word in words if word in IS_PLURAL_VERB)


def forms(concept: Concept) -> set[str]:
    return {form for w in concept.wordings for form in (w, plural(w), third_person(w))}


@pytest.mark.parametrize("task", TASKS)
def test_same_names_give_the_same_rows_and_other_seeds_other_rows(task: str) -> None:
    once, again = (generate_task(task, "train", ROWS, seed=3) for _ in range(2))
    assert once.equals(again)
    assert not once.equals(generate_task(task, "train", ROWS, seed=4))


@pytest.mark.parametrize("task", TASKS)
def test_columns_types_and_labels_are_those_of_glue(task: str) -> None:
    table = generate_task(task, "validation", ROWS, seed=0)
    assert table.column_names == [*TASKS[task].columns, "label", "idx"]
    assert all(table.schema.field(name).type == pyarrow.string() for name in TASKS[task].columns)
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
        rows = list(zip(*(table[name].to_pylist() for name in TASKS[task].columns), strict=True))
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
    with pytest.raises(DataError, match="'sst'.*did you mean 'sst2'"):
        constant_predictions(pyarrow.table({"label": [1]}), pyarrow.table({}), "sst")


def test_the_corpus_is_deterministic_and_holds_no_validation_row() -> None:
    corpus = generate_corpus(400, seed=1)
    assert corpus == generate_corpus(400, seed=1)
    assert corpus != generate_corpus(400, seed=2)
    assert {document.count(SEPARATOR) for document in corpus} == {0, 1}
    bare = [
        [text.removeprefix(f"{word} ") for text in document.split(SEPARATOR)]
        for document in corpus
        for word in ("", *CONNECTIVES)
    ]
    told = {SEPARATOR.join(texts) for texts in bare} | {text for texts in bare for text in texts}
    assert {split_of(document) for document in corpus if SEPARATOR not in document} == {"train"}
    for task, form in TASKS.items():
        table = generate_task(task, "validation", ROWS, seed=1)
        rows = zip(*(table[name].to_pylist() for name in form.columns), strict=True)
        assert not told & {SEPARATOR.join(row) for row in rows}
    with pytest.raises(ValueError, match="at least 1"):
        generate_corpus(0, seed=1)


def test_connectives_say_how_the_second_passage_stands_to_the_first() -> None:
    concepts = {
        form: concept
        for role in ROLES
        for concept in (*ROLES[role], *kinds(role))
        for form in forms(concept)
    }

    def meaning(text: str) -> set[object]:
        return {concepts.get(word, word) for word in text.split() if word in {*concepts, "not"}}

    met = Counter()
    for document in generate_corpus(3000, seed=5):
        first, *second = document.split(SEPARATOR)
        connective = second[0].split()[0] if second else ""
        if connective not in CONNECTIVES:
            continue
        met[connective] += 1
        if " is " in first or "?" in second[0]:
            continue  # reviews agree in verdict; questions may differ in their topic
        same = meaning(first) == meaning(second[0])
        assert connective not in ("again", "so", "but", "meanwhile") or same == (
            connective == "again"
        ), document
    assert set(met) == set(CONNECTIVES)
    assert min(met.values()) > 30


def test_no_word_belongs_to_two_concepts_or_roles() -> None:
    groups = [*((*ROLES[role], *kinds(role)) for role in ROLES), NEIGHBOURS]
    words = [w for group in (*groups, ASPECTS, PRAISE, CRITICISM) for c in group for w in forms(c)]
    assert [word for word, count in Counter(words).items() if count > 1] == []


def test_verbs_are_opposite_in_pairs() -> None:
    for verb in ROLES["verb"]:
        assert opposite(verb) != verb
        assert opposite(opposite(verb)) == verb


def test_every_sentence_agrees_and_every_violation_keeps_its_words_in_number() -> None:
    rng = Random(0)
    for _ in range(EVENTS):
        words = express(draw_event(rng, near=0.5, negated=0.3), rng)
        assert agrees(words), " ".join(words)
        broken = violate(words, rng)
        assert broken != words
        assert len(broken) == len(words)


def test_acceptable_rows_agree_and_most_unacceptable_ones_do_not() -> None:
    table = generate_task("cola", "train", ROWS, seed=0)
    outcome: dict[int, list[bool]] = {0: [], 1: []}
    for text, label in zip(table["sentence"].to_pylist(), table["label"].to_pylist(), strict=True):
        outcome[label].append(agrees(text.split()))
    assert all(outcome[1])
    assert numpy.mean(outcome[0]) < 0.5  # the others have a wrong word order


def implies(one: Event, other: Event) -> bool:
    """The definition, independent of how `entailed` constructs its events."""
    if one.negated or other.negated:
        return one == other
    return one.verb == other.verb and all(
        (concept := concept_of(one, role)) is not None
        and concept_of(other, role) in (concept, concept.kind)
        for role in roles_of(other)
    )


def test_relations_are_what_they_are_called() -> None:
    rng = Random(0)
    for _ in range(EVENTS):
        event = draw_event(rng, kind=0.3, negated=0.3)
        assert implies(event, entailed(event, rng))
        assert not implies(event, undetermined(event, rng))
        assert not implies(event, changed(event, rng))
        denied = contradicting(event, rng)
        assert denied.negated != event.negated or denied.verb == opposite(event.verb)


def test_similarity_is_full_for_one_meaning_symmetric_and_graded_by_kind() -> None:
    rng = Random(0)
    for _ in range(EVENTS):
        one = draw_event(rng)
        other = graded(one, rng)
        assert similarity(one, one) == 5
        assert 0 <= similarity(one, other) == similarity(other, one) <= 5
    dog, cat, *_, pilot = ROLES["subject"]
    assert dog.kind is not None
    event = Event(dog, ROLES["verb"][0], ROLES["object"][0])
    alike = [similarity(event, replace(event, subject=s)) for s in (dog, dog.kind, cat, pilot)]
    assert alike == pytest.approx([5, 25 / 6, 25 / 6, 10 / 3])


@pytest.mark.parametrize("about", QUESTIONS)
def test_a_question_leaves_out_what_it_asks_for(about: str) -> None:
    rng = Random(0)
    for _ in range(EVENTS):
        event = draw_event(rng, place=1.0, time=1.0)
        asked = concept_of(event, QUESTIONS[about])
        assert asked is not None
        assert not set(ask(event, about, rng)) & forms(asked)
        assert set(ask(event, "whether", rng)) & forms(asked)


def test_words_are_marked_with_their_side() -> None:
    table = pyarrow.table({"question": ["Who runs ?"], "sentence": ["he runs ."]})
    assert marked_texts(table, "qnli") == ["1:who 1:runs 1:? 2:he 2:runs 2:."]
    with pytest.raises(KeyError, match="premise"):
        marked_texts(table, "mnli")


def test_word_counts_hardly_predict_paraphrase_but_do_predict_planted_words() -> None:
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


def test_the_constant_prediction_is_the_most_frequent_label_or_the_mean_score() -> None:
    train = pyarrow.table({"sentence": list("abc"), "label": [1, 0, 1]})
    assert constant_predictions(train, train.slice(0, 2), "cola").tolist() == [1, 1]
    scores = pyarrow.table({"label": pyarrow.array([1.0, 4.0], pyarrow.float32())})
    assert constant_predictions(scores, scores, "stsb").tolist() == [2.5, 2.5]


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
        "import sys, finegates.seeds, finegates.suite.data.language; "
        "import finegates.suite.data.bag_of_words; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
