"""Seals: a job's output is recognised, and nothing else passes for it."""

import subprocess

import pytest

from finegates.files import content_digest, remove_fragments, whole_file, whole_folder
from finegates.suite.jobs.seals import SealError, break_seal, check_seal, damaged, is_sealed, seal


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "tables" / "glue.csv"
    path.parent.mkdir()
    path.write_bytes(b"task,score\ncola,41.5\n")
    seal(path)
    return path


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model"
    (path / "inner").mkdir(parents=True)
    (path / "a.json").write_text("{}")
    (path / "inner" / "b").write_bytes(bytes(1000))
    seal(path)
    return path


def test_what_was_sealed_passes_and_what_never_was_is_nobodys_to_judge(table, model):
    assert check_seal(table)
    assert check_seal(model)
    assert is_sealed(model)
    table.with_name("other.csv").touch()
    assert not check_seal(table.with_name("other.csv"))
    assert damaged(table.parents[1]) == (2, [])


@pytest.mark.parametrize("place", range(0, 21, 5))
def test_a_flipped_bit_breaks_a_seal(table, place):
    content = bytearray(table.read_bytes())
    content[place] ^= 4
    table.write_bytes(content)
    with pytest.raises(SealError, match=r"glue.csv is not as its job wrote it.*Delete .*glue.csv"):
        check_seal(table)
    assert len(damaged(table.parent)[1]) == 1


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda f: (f / "inner" / "b").write_bytes(bytes(999)), "the sha256 of inner/b"),
        (lambda f: (f / "a.json").unlink(), "a.json is missing"),
        (lambda f: (f / "more").touch(), "does not know more"),
        (lambda f: (f / ".sha256").write_bytes(b"\xff\x00"), "seal .* is damaged"),
        (lambda f: (f / ".sha256").write_text(""), "does not know a.json"),
    ],
)
def test_every_harm_to_a_sealed_folder_is_named(model, harm, reason):
    harm(model)
    with pytest.raises(SealError, match=reason) as caught:
        check_seal(model)
    assert str(model) in str(caught.value)
    assert "run again" in str(caught.value)


def test_a_broken_seal_and_a_deleted_file_are_no_damage(table, model):
    table.unlink()
    break_seal(model)
    assert damaged(table.parents[1]) == (0, [])
    assert not is_sealed(model)


def test_what_other_tools_hide_in_a_folder_is_not_sealed(model):
    (model / ".snakemake_timestamp").touch()
    assert check_seal(model)


def test_nothing_seals_nothing(tmp_path):
    seal(tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []


def test_a_stock_tool_reads_seals(table, model):
    for folder, name in ((table.parent, ".glue.csv.sha256"), (model, ".sha256")):
        command = ["sha256sum", "--check", "--strict", name]
        assert subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


def test_a_digest_is_of_the_content_and_not_of_its_order():
    assert content_digest({"a": 1, "b": [0.1]}) == content_digest({"b": [0.1], "a": 1})
    assert content_digest({"a": 1}) != content_digest({"a": 1.5})
    with pytest.raises(ValueError, match="JSON compliant"):
        content_digest({"a": float("nan")})


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    place = tmp_path / "m"
    with whole_folder(place) as aside:
        (aside / "one").touch()
        assert not place.exists()
    assert [p.name for p in place.iterdir()] == ["one"]
    with pytest.raises(OSError, match="Is a directory"), whole_folder(place) as aside:
        aside.write_text("what the writer does wrong")
    assert [p.name for p in tmp_path.rglob("*")] == ["m", "one"]
    with whole_folder(place) as aside:
        (aside / "two").touch()
    assert [p.name for p in tmp_path.rglob("*")] == ["m", "two"]


def test_fragments_of_killed_writers_go_and_nothing_else(tmp_path):
    target = tmp_path / "glue.csv"
    writer = whole_file(target)
    writer.__enter__().touch()
    (tmp_path / ".77.glue.csv").mkdir()
    kept = {".x.glue.csv", ".1.glue_csv", ".glue.csv.sha256", "glue.csv"}
    for name in kept:
        (tmp_path / name).touch()
    remove_fragments(target)
    assert {path.name for path in tmp_path.iterdir()} == kept
