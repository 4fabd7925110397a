"""Predictions of every validation row: complete, in order, with their digest in the record."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

from finegates.suite.models.sources import load_tokenizer, read_table
from finegates.suite.runs.finetune import TaskData, finetune
from finegates.suite.runs.predictions import (
    Predictions,
    checked_predictions,
    expected_predictions,
    predictions_path,
    read_predictions,
    write_predictions,
)
from finegates.suite.runs.record import write_record
from finegates.suite.runs.signed import RecordError
from finegates.suite.verify import verify
from support.records import make_record
from support.tier import tiny_tier

LOGITS = np.array([[0.1, 0.2], [0.4, -0.3], [0.0, 1.0]])


def written(folder, **changes):
    record = folder / "runs" / "cola" / "gates" / "seed0.json"
    values = {"task": "cola", "rows": np.array([2, 0, 1]), "labels": np.array([1, 0, 1])}
    named = write_predictions(
        predictions_path(record), **{**values, **changes}, logits={"last": LOGITS, "best": -LOGITS}
    )
    write_record(make_record(predictions=named), record)
    return record


def test_rows_come_back_in_the_order_of_the_source(tmp_path):
    record = written(tmp_path)
    assert predictions_path(record).name == "seed0.predictions.parquet"
    found = read_predictions(record)
    assert found["row"].tolist() == [0, 1, 2]
    assert found["label"].tolist() == [0, 1, 1]
    assert found["last_prediction"].tolist() == [0, 1, 1]
    assert found["best_prediction"].tolist() == [1, 0, 0]
    logits = np.stack(found["last_logits"])
    assert logits.dtype == np.float32
    assert np.array_equal(logits, LOGITS[[1, 2, 0]].astype(np.float32))


def test_a_similarity_is_a_number_and_not_a_class(tmp_path):
    path = tmp_path / "seed0.predictions.parquet"
    labels = np.array([4.5, 0.25], dtype=np.float32)
    logits = np.array([[4.0], [0.5]])
    named = write_predictions(path, "stsb", np.arange(2), labels, {"last": logits, "best": logits})
    record = make_record(task="stsb", predictions=named)
    write_record(record, tmp_path / "seed0.json")
    found = read_predictions(tmp_path / "seed0.json")
    assert found["label"].tolist() == [4.5, 0.25]
    assert found["last_prediction"].tolist() == [4.0, 0.5]


def test_the_same_predictions_are_the_same_bytes(tmp_path):
    files = [predictions_path(written(tmp_path / name)) for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_record_without_predictions_is_read_as_before(tmp_path):
    write_record(make_record(), tmp_path / "seed0.json")
    assert checked_predictions(tmp_path / "seed0.json") is None
    assert read_predictions(tmp_path / "seed0.json") is None


def test_a_missing_and_a_changed_file_are_named_with_the_remedy(tmp_path):
    record = written(tmp_path)
    assert verify(tmp_path)[1] == []
    path = predictions_path(record)
    content = bytearray(path.read_bytes())
    content[8] ^= 1
    path.write_bytes(content)
    with pytest.raises(RecordError, match="is damaged: its SHA-256 .* run again"):
        read_predictions(record)
    path.unlink()
    with pytest.raises(RecordError, match="is missing, which .* run again"):
        read_predictions(record)
    assert len(verify(tmp_path)[1]) == 1


def test_a_run_leaves_the_predictions_that_its_scores_are_of(tmp_path):
    tier = tiny_tier(tmp_path)
    data = TaskData(tier, "cola", load_tokenizer(tier))
    files = [tmp_path / f"seed{name}.predictions.parquet" for name in (0, 1)]
    record, _ = (
        finetune(tier, data, "gates", tier.seeds[0], predictions=path, progress=False)
        for path in files
    )
    assert files[0].read_bytes() == files[1].read_bytes()
    write_record(record, tmp_path / "seed0.json")
    found = read_predictions(tmp_path / "seed0.json")
    table = read_table(tier, "cola", "validation").to_pydict()
    assert found["row"].tolist() == list(range(len(table["label"])))
    assert found["label"].tolist() == table["label"]
    for name in ("last", "best"):
        assert np.stack(found[f"{name}_logits"]).argmax(-1).tolist() == (
            found[f"{name}_prediction"].tolist()
        )
        score = 100 * matthews_corrcoef(table["label"], found[f"{name}_prediction"])
        assert score == pytest.approx(getattr(record, name).score)
    assert record.predictions == Predictions(
        sha256=record.predictions.sha256, rows=len(table["label"])
    )


def test_files_are_expected_of_runs_to_come_and_of_records_that_name_one(tmp_path):
    named = written(tmp_path)
    nameless = tmp_path / "runs" / "cola" / "old" / "seed0.json"
    write_record(make_record(), nameless)
    coming = tmp_path / "runs" / "cola" / "new" / "seed0.json"
    damaged = tmp_path / "runs" / "cola" / "gates" / "seed1.json"
    damaged.write_text("{")
    expected = expected_predictions([named, nameless, coming, damaged])
    assert expected == [str(predictions_path(path)) for path in (named, coming, damaged)]
