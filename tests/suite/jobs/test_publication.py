"""Published copies are replaced as a whole, and remain unchanged if one copy fails."""

from __future__ import annotations

import pytest

from finegates.suite.jobs.publication import publish


def test_copies_replace_the_earlier_ones_and_leave_nothing_aside(tmp_path):
    source, target = tmp_path / "results", tmp_path / "published" / "tier"
    (source / "runs" / "cola").mkdir(parents=True)
    (target / "old").mkdir(parents=True)
    first, second = source / "a.csv", source / "runs" / "cola" / "seed0.json"
    first.write_text("1")
    second.write_text("2")
    publish([first, str(second), first], source, target)
    found = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
    assert found == {"a.csv", "runs/cola/seed0.json"}
    assert not (target / "old").exists()
    assert [p.name for p in target.parent.iterdir()] == ["tier"]
    with pytest.raises(FileNotFoundError):
        publish([first, source / "missing.csv"], source, target)
    assert {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()} == found
    assert [p.name for p in target.parent.iterdir()] == ["tier"]
