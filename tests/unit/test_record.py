"""Run records: written whole, read back equal, refused when damaged."""

import json

import pytest

from finegates.record import RecordError, read_record, read_records, write_record, write_text
from records import make_record


def test_a_record_comes_back_as_it_was_written(tmp_path):
    record = make_record()
    write_record(record, tmp_path / "a" / "b.json")
    assert read_record(tmp_path / "a" / "b.json") == record
    assert read_records([tmp_path / "a" / "b.json"]) == [record]


def test_the_same_record_is_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_record(make_record(), tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_number_that_json_cannot_hold_is_refused_and_nothing_is_left(tmp_path):
    record = make_record()
    bad = record.model_copy(update={"timing": {"wall_s": float("nan")}})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_record(bad, tmp_path / "r.json")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_earlier_file_and_no_fragment(tmp_path, monkeypatch):
    target = tmp_path / "t.txt"
    write_text(target, "before")

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(target, "after")
    assert [p.name for p in tmp_path.iterdir()] == ["t.txt"]
    assert target.read_text() == "before"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(format_version=99), "format version 99, expected 1"),
        (lambda raw: raw.pop("epochs"), "missing key 'epochs'"),
        (lambda raw: raw.update(epochs=[]), "epochs"),
        (lambda raw: raw.update(scores=1), "unknown key 'scores'"),
        (lambda raw: raw["last"].update(score="high"), "last.score"),
        (lambda raw: raw["last"].update(score="60"), "last.score"),
        (lambda raw: raw["last"].update(score=61.0), "'last' or 'best' is none of the epochs"),
        (lambda raw: raw.update(best=raw["epochs"][0]), "'best' is not the best epoch"),
        (lambda raw: raw["epochs"].reverse(), "epochs are not numbered"),
        (lambda raw: raw.update(task="colla"), "unknown task 'colla'"),
        (lambda raw: raw.update(method="../x"), "method '../x'"),
        (lambda raw: raw.update(seed=-1), "seed"),
        (lambda raw: raw.update(realised_sparsity=1.5), "realised_sparsity"),
    ],
)
def test_a_record_that_does_not_fit_its_schema_is_refused(tmp_path, change, message):
    path = tmp_path / "r.json"
    write_record(make_record(), path)
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(RecordError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00\x01", '{"format_version": 1'])
def test_damage_is_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(RecordError, match="r.json"):
        read_record(path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(RecordError, match=r"absent.json"):
        read_record(tmp_path / "absent.json")
