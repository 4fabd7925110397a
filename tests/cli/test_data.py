"""Tables, columns, labels and scores of the command line."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from finegates.cli.examples import (
    Columns,
    Examples,
    Labels,
    choose_columns,
    hold_out,
    make_examples,
    read_labels,
)
from finegates.cli.failures import CommandError
from finegates.cli.glue_tables import TASKS, task_files, task_named
from finegates.cli.scores import measure
from finegates.cli.tables import read_table
from finegates.suite.config import tasks
from support.cli_models import write_csv, write_json_lines

ROWS = [
    {"text": 'he said "so", and left', "label": "yes"},
    {"text": "two\nlines", "label": "no"},
    {"text": "tab\tand ünicode", "label": "yes"},
]


def write(path: Path, rows: list[dict]) -> Path:
    kind = path.suffix
    if kind in (".csv", ".tsv"):
        return write_csv(path, rows, "\t" if kind == ".tsv" else ",")
    if kind == ".json":
        path.write_text(json.dumps(rows))
    elif kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_json_lines(path, rows)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet"])
def test_every_kind_of_file_gives_the_same_table(tmp_path, suffix):
    table = read_table(write(tmp_path / f"rows{suffix}", ROWS))
    assert table == {name: [row[name] for row in ROWS] for name in ("text", "label")}


def test_a_byte_order_mark_and_empty_lines_are_no_data(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext,label\r\n\r\na,1\r\n\r\nb,\r\n")
    assert read_table(tmp_path / "a.csv") == {"text": ["a", "b"], "label": ["1", None]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", b"", "cannot tell the file's format from '.xlsx'; give it one of the suffixes"),
        ("a", b"", "cannot tell the file's format from 'its name'"),
        ("a.csv", b"", "has no rows; give a file with at least one"),
        ("a.csv", b"text,label\n", "has no rows"),
        ("a.csv", b"text,text\na,b\n", "the column 'text' appears twice; correct the file"),
        ("a.csv", b"text,label\na,1,2\n", "line 2 has 3 fields, the first line 2"),
        ("a.csv", b'text,label\n"a,1\nb,2\n', "unexpected end of data"),
        ("a.csv", b"text,label\n\xff,1\n", "is not UTF-8"),
        ("a.json", b"{", "correct the file"),
        ("a.json", b'{"text": "a"}', "is JSON, but not a list of objects"),
        ("a.json", b'["a"]', "row 1 is not an object"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("a.parquet", b"no parquet", "is not a readable Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_the_fault(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CommandError) as caught:
        read_table(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert message in str(caught.value)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(CommandError, match=r"a\.csv: no such file; check the path"):
        read_table(tmp_path / "a.csv")


def test_parquet_without_its_package_names_the_extra(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", ROWS)
    real = builtins.__import__

    def without(name: str, *rest: object, **more: object) -> object:
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="pyarrow")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CommandError, match=r"needs the package 'pyarrow'.*finegates\[suite\]"):
        read_table(path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("text", "label"), Columns("text", None, "label")),
        (("id", "sentence", "label"), Columns("sentence", None, "label")),
        (("sentence1", "sentence2", "label"), Columns("sentence1", "sentence2", "label")),
        (("question", "sentence", "label", "idx"), Columns("question", "sentence", "label")),
        (("review", "target"), Columns("review", None, "target")),
    ],
)
def test_columns_of_usual_names_are_found(names, expected):
    assert choose_columns({name: ["x"] for name in names}, "f", None, None, None) == expected


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (("words", "label"), {}, "cannot tell which column has the text: name it"),
        (("text", "review", "label"), {}, "cannot tell which column has the text"),
        (("text", "premise", "hypothesis", "label"), {}, "cannot tell which column has the t"),
        (("text", "mood"), {}, "cannot tell which column has the label: name it"),
        (("text", "label", "class"), {}, "cannot tell which column has the label"),
        (("text", "label"), {"text": "txt"}, "--text txt: no such column"),
        (("text", "label"), {"label": "lab"}, "--label lab: no such column"),
        (("a", "b", "label"), {"pair": "b"}, "--text-pair b: name the first text as well"),
        (("text", "label"), {"text": "text", "label": "text"}, "one column is named twice"),
    ],
)
def test_columns_that_are_not_clear_are_asked_for_with_all_there_are(names, given, message):
    options = {"text": None, "pair": None, "label": None} | given
    with pytest.raises(CommandError) as caught:
        choose_columns({name: ["x"] for name in names}, "f.csv", **options)
    assert message in str(caught.value)
    assert f"f.csv has the columns {', '.join(map(repr, names))}" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "names", "codes"),
    [
        (["no", "yes", "no"], ("no", "yes"), [0, 1, 0]),
        ([2, 0, 1], ("0", "1", "2"), [2, 0, 1]),
        (["10", "9", "10"], ("9", "10"), [1, 0, 1]),
        ([-1, 1], ("-1", "1"), [0, 1]),
        ([True, False], ("False", "True"), [1, 0]),
    ],
)
def test_labels_are_classes_in_increasing_order(values, names, codes):
    labels = read_labels(values, "f")
    assert labels.names == names
    table = {"text": ["a"] * len(values), "label": values}
    assert make_examples(table, Columns("text", None, "label"), labels, "f").labels == codes


@pytest.mark.parametrize("values", [[0.5, 1.0], ["0.5", "1"], [1, 0.25]])
def test_labels_with_a_decimal_point_are_regression(values):
    labels = read_labels(values, "f")
    assert labels.names is None
    assert labels.outputs == 1
    table = {"text": ["a", "b"], "label": values}
    found = make_examples(table, Columns("text", None, "label"), labels, "f").labels
    assert found == [float(value) for value in values]


def test_a_class_that_looks_like_a_number_in_one_file_alone_is_the_same_class():
    labels = read_labels(["1", "2", "many"], "train")
    table = {"text": ["a", "b"], "label": ["2", "1"]}
    assert make_examples(table, Columns("text", None, "label"), labels, "eval").labels == [1, 0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", None], "row 2: the label is missing"),
        (["a", 1], "labels are of several kinds (number, str)"),
        (["a", "a"], "every label is 'a', so there is nothing to learn"),
        ([float("nan"), 1.0], "row 1: the label nan is not finite"),
        (["0.5", "nan"], "row 2: the label nan is not finite"),
        ([["a"], ["b"]], "row 1: ['a'] is not a label"),
        ([f"name {n}" for n in range(30)], "30 different labels in 30 rows are not classes"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused_with_their_place(values, message):
    with pytest.raises(CommandError) as caught:
        read_labels(values, "f.csv, column 'label'")
    assert message in str(caught.value)
    assert str(caught.value).startswith("f.csv, column 'label'")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"text": ["a"]}, "has no column 'label' as the training rows have; it has 'text'"),
        ({"text": [None], "label": ["x"]}, "column 'text', row 1: the text is missing"),
        ({"text": [7], "label": ["x"]}, "row 1: 7 is not a text; name another column"),
        ({"text": ["a"], "label": ["z"]}, "row 1: the label 'z' is not among the training rows'"),
        ({"text": ["a"], "label": [None]}, "row 1: the label is missing"),
    ],
)
def test_rows_that_do_not_fit_the_training_rows_are_refused(table, message):
    labels = Labels(("x", "y"), ("x", "y"))
    with pytest.raises(CommandError) as caught:
        make_examples(table, Columns("text", None, "label"), labels, "eval.csv")
    assert message in str(caught.value)
    assert str(caught.value).startswith("eval.csv")


def test_a_text_among_numbers_is_refused():
    with pytest.raises(CommandError, match="row 2: 'x' is not a number; the others are"):
        make_examples(
            {"text": ["a", "b"], "label": [1.0, "x"]},
            Columns("text", None, "label"),
            Labels(None),
            "f",
        )


def test_a_tenth_of_each_class_is_held_out_and_the_choice_is_the_seeds():
    labels = Labels(("rare", "usual"), (0, 1))
    codes = [0] * 20 + [1] * 80
    examples = Examples([str(n) for n in range(100)], None, codes)
    train, held = hold_out(examples, labels, 0)
    assert [held.labels.count(code) for code in (0, 1)] == [2, 8]
    assert sorted(train.texts + held.texts, key=int) == examples.texts
    assert train.texts == sorted(train.texts, key=int), "the order of the rows is kept"
    assert hold_out(examples, labels, 0) == (train, held)
    assert hold_out(examples, labels, 1) != (train, held)


def test_regression_holds_a_tenth_out_whatever_the_numbers_are():
    examples = Examples([str(n) for n in range(50)], None, [n / 7 for n in range(50)])
    train, held = hold_out(examples, Labels(None), 0)
    assert (len(train), len(held)) == (45, 5)


def test_rows_that_are_too_few_to_be_split_are_refused():
    with pytest.raises(CommandError, match="1 rows are too few to hold some out.*--eval"):
        hold_out(Examples(["a"], None, [0.5]), Labels(None), 0)


@pytest.mark.parametrize("outputs", [2, 3])
def test_measures_of_classes_are_those_of_scikit_learn(outputs):
    draw = np.random.default_rng(0)
    logits, truth = draw.normal(size=(200, outputs)), draw.integers(0, outputs, 200)
    found = logits.argmax(-1)
    average = "binary" if outputs == 2 else "macro"
    expected = {
        "accuracy": accuracy_score(truth, found),
        "f1": f1_score(truth, found, average=average),
    }
    if outputs == 2:
        expected["matthews"] = matthews_corrcoef(truth, found)
    assert measure(list(expected), logits, truth.tolist()) == pytest.approx(expected, rel=1e-12)


def test_correlations_are_those_of_scipy_also_with_ties():
    draw = np.random.default_rng(0)
    scores, truth = draw.normal(size=(100, 1)).round(1), draw.integers(0, 6, 100)
    assert measure(("pearson", "spearman"), scores, truth.tolist()) == pytest.approx(
        {
            "pearson": stats.pearsonr(scores[:, 0], truth).statistic,
            "spearman": stats.spearmanr(scores[:, 0], truth).statistic,
        },
        rel=1e-12,
    )


def test_a_correlation_with_a_constant_is_zero():
    assert measure(("pearson",), np.ones((4, 1)), [1.0, 2.0, 3.0, 4.0]) == {"pearson": 0.0}


def test_the_tasks_of_glue_are_those_of_the_suite():
    assert TASKS.keys() == tasks.TASKS.keys()
    for name, task in TASKS.items():
        expected = tasks.TASKS[name]
        assert task.text == expected.columns
        assert task.names == expected.labels
        assert task.measures == expected.metrics
        assert task.validation == expected.validation


def test_an_unknown_task_is_refused_with_the_nearest():
    with pytest.raises(CommandError, match="--task mprc: did you mean 'mrpc'"):
        task_named("mprc")


def test_a_task_is_found_in_its_own_folder_in_the_one_given_and_in_several_files(tmp_path):
    for name in ("train", "validation"):
        write(tmp_path / f"{name}.parquet", ROWS)
    assert task_files("rte", tmp_path) == (
        [tmp_path / "train.parquet"],
        [tmp_path / "validation.parquet"],
    )
    own = tmp_path / "cola"
    own.mkdir()
    parts = [own / f"train-0000{n}-of-00002.parquet" for n in (0, 1)]
    for path in (*parts, own / "validation.parquet"):
        write(path, ROWS)
    assert task_files("cola", tmp_path) == (parts, [own / "validation.parquet"])


def test_a_split_that_is_missing_is_named_with_its_place(tmp_path):
    with pytest.raises(CommandError, match=r"no train\.parquet of task mnli .* mnli/validation_m"):
        task_files("mnli", tmp_path)
    with pytest.raises(CommandError, match="no such folder; check the path"):
        task_files("mnli", tmp_path / "nowhere")
