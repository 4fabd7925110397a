"""Run records: written as a whole, read back equal, refused when corrupt."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finegates.files import content_digest, write_text
from finegates.suite.runs.record import read_record, read_records, write_record
from finegates.suite.runs.signed import RecordError, is_signed, without_times
from support.records import make_record


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
        (lambda raw: raw.update(format_version=99), "format version 99, expected 2"),
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
    del raw["sha256"]
    change(raw)
    path.write_text(json.dumps({**raw, "sha256": content_digest(raw)}))
    with pytest.raises(RecordError, match=message) as caught:
        read_record(path)
    assert str(path) in str(caught.value)


@given(data=st.data())
def test_no_flipped_bit_of_a_record_becomes_another_record(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("flipped") / "r.json"
    record = make_record()
    write_record(record, path)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        found = read_record(path)
    except RecordError:
        return
    assert found == record  # one space was replaced


def test_a_record_from_before_there_was_a_digest_is_read_as_it_is(tmp_path):
    values = make_record(format_version=1).model_dump()
    (tmp_path / "r.json").write_text(json.dumps(values))
    read = read_record(tmp_path / "r.json")
    assert read == make_record(format_version=1)
    assert not is_signed(read)
    write_record(read, tmp_path / "again.json")
    assert is_signed(read_record(tmp_path / "again.json"))
    assert read_record(tmp_path / "again.json").last == read.last


@pytest.mark.parametrize("change", [lambda raw: raw.pop("sha256"), lambda raw: raw.update(seed=7)])
def test_a_record_without_its_digest_or_of_another_is_refused(tmp_path, change):
    path = tmp_path / "r.json"
    write_record(make_record(), path)
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(RecordError, match=r"r.json is damaged .*digest.*; delete it and run again"):
        read_record(path)


def test_only_times_differ_when_a_run_is_done_again(tmp_path):
    values = []
    for wall in (1.0, 2.0):
        write_record(make_record(timing={"wall_s": wall}), tmp_path / "r.json")
        values.append(json.loads((tmp_path / "r.json").read_text()))
    assert values[0] != values[1]
    assert without_times(values[0]) == without_times(values[1])
    write_record(make_record(seed=7), tmp_path / "r.json")
    other = json.loads((tmp_path / "r.json").read_text())
    assert without_times(other) != without_times(values[0])


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00\x01", '{"format_version": 1'])
def test_damage_is_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(RecordError, match="r.json"):
        read_record(path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(RecordError, match=r"absent.json"):
        read_record(tmp_path / "absent.json")
