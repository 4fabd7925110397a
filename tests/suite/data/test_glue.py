"""Reading GLUE tables: columns, labels, and error messages."""

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef

from finegates.suite.config.tasks import TASKS, DataError, task_named
from finegates.suite.data.glue import describe_split, read_hub_split, read_split, split_path
from finegates.suite.runs.metrics import GlueMetric, predictions_from_logits, score


def write(folder, task="cola", split="train", metadata=None, **columns):
    columns = columns or {"sentence": ["a b", "c"], "label": [0, 1], "idx": [0, 1]}
    path = split_path(folder, task, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)
    return path


def test_a_split_is_its_text_columns_and_label_in_order(tmp_path):
    write(tmp_path)
    table = read_split(tmp_path, "cola", "train")
    assert table.column_names == ["sentence", "label"]
    assert table["label"].to_pylist() == [0, 1]
    assert read_split(tmp_path, "cola", "train", rows=1).num_rows == 1


def test_mnli_reports_its_matched_split(tmp_path):
    assert split_path(tmp_path, "mnli", "validation").name == "validation_matched.parquet"


def test_the_split_status_in_the_file_is_described(tmp_path):
    write(tmp_path, metadata={b"split_status": b"official-subset: a tenth"})
    described = describe_split(tmp_path, "cola", "train")
    assert described["status"] == "official-subset: a tenth"
    assert len(described["sha256"]) == 64
    write(tmp_path, split="validation")
    assert describe_split(tmp_path, "cola", "validation")["status"] == "unstated"


@pytest.mark.parametrize(
    ("task", "columns", "message"),
    [
        ("cola", {"text": ["a"], "label": [0]}, "needs column 'sentence'"),
        ("cola", {"sentence": ["a"]}, "needs column 'label'"),
        ("cola", {"sentence": ["a"], "label": [2]}, r"labels of 'cola' must be in \[0, 1\]"),
        ("cola", {"sentence": ["a"], "label": [-1]}, "hidden test labels are -1"),
        ("cola", {"sentence": ["a"], "label": [0.5]}, "must be integer codes"),
        ("cola", {"sentence": ["a", None], "label": [0, 1]}, "1 missing values"),
        ("cola", {"sentence": ["a", "b"], "label": [0, None]}, "1 missing values"),
        ("cola", {"sentence": [3], "label": [0]}, "must hold text"),
        (
            "cola",
            {"sentence": pa.array([], pa.string()), "label": pa.array([], pa.int64())},
            "no rows",
        ),
        ("stsb", {"sentence1": ["a"], "sentence2": ["b"], "label": [5.5]}, r"must lie in 0..5"),
        ("stsb", {"sentence1": ["a"], "sentence2": ["b"], "label": ["x"]}, "must be numbers"),
        (
            "stsb",
            {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [float("nan"), 1.0]},
            "must be finite",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_file_and_fault(tmp_path, task, columns, message):
    path = write(tmp_path, task, **columns)
    with pytest.raises(DataError, match=message) as caught:
        read_split(tmp_path, task, "train")
    assert str(path) in str(caught.value)


def test_missing_folder_file_and_task_are_named_with_the_remedy(tmp_path):
    with pytest.raises(DataError, match="set data.path"):
        read_split(tmp_path / "absent", "cola", "train")
    with pytest.raises(DataError, match="lacks split 'train' of task 'cola'"):
        read_split(tmp_path, "cola", "train")
    with pytest.raises(DataError, match=r"unknown task 'rtee'; did you mean 'rte'\?"):
        task_named("rtee")
    path = split_path(tmp_path, "cola", "train")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_split(tmp_path, "cola", "train")


def test_no_network_is_an_error_that_names_the_remedy(monkeypatch):
    import datasets

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"no route to host.*check the network.*data.path"):
        read_hub_split("nyu-mll/glue", "0" * 40, "cola", "train")


def test_metrics_are_glues():
    y, p = [0, 1, 1, 0, 1], [0, 1, 0, 1, 1]
    found = {
        task: GlueMetric(task).compute(predictions=p, references=y)
        for task in ("cola", "mrpc", "sst2")
    }
    assert found["cola"]["matthews"] == pytest.approx(matthews_corrcoef(y, p))
    assert found["mrpc"] == pytest.approx({"accuracy": 0.6, "f1": f1_score(y, p)})
    assert found["sst2"] == pytest.approx({"accuracy": 0.6})
    y, p = [0.0, 1.5, 3.0, 5.0], [0.2, 1.0, 2.0, 4.0]
    stsb = GlueMetric("stsb").compute(predictions=p, references=y)
    assert stsb["pearson"] == pytest.approx(stats.pearsonr(y, p)[0], abs=1e-6)
    assert stsb["spearman"] == pytest.approx(1.0)


def test_the_score_is_the_mean_of_the_metrics_times_100():
    assert score("mrpc", {"accuracy": 0.8, "f1": 0.9}) == pytest.approx(85.0)
    assert score("cola", {"matthews": -0.5}) == -50.0


def test_a_correlation_with_a_constant_counts_as_zero():
    metrics = GlueMetric("stsb").compute(predictions=[1.0, 1.0], references=[0.0, 5.0])
    assert metrics == {"pearson": 0.0, "spearman": 0.0}
    assert not any(math.isnan(v) for v in metrics.values())


def test_predictions_are_classes_or_similarities():
    assert predictions_from_logits("rte", [[0.1, 0.9], [3.0, -1.0]]).tolist() == [1, 0]
    assert predictions_from_logits("stsb", [[1.5], [2.5]]).tolist() == [1.5, 2.5]


def test_official_sizes_and_label_sets():
    assert {name: task.num_labels for name, task in TASKS.items()} == {
        "cola": 2, "sst2": 2, "mrpc": 2, "stsb": 1, "qqp": 2, "mnli": 3, "qnli": 2, "rte": 2,
    }  # fmt: skip


@pytest.mark.parametrize("text", [b"sentence", b"a text"])
def test_names_and_texts_that_are_no_utf8_are_refused(tmp_path, text):
    path = split_path(tmp_path, "cola", "train")
    path.parent.mkdir(parents=True)
    table = pa.table({"sentence": ["a text"], "label": [1]})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    spoilt = text[:1] + b"\x81" + text[2:]
    path.write_bytes(path.read_bytes().replace(text, spoilt))
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_split(tmp_path, "cola", "train")
