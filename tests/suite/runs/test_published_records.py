"""Published records are read as written: no value is lost, added or changed."""

from __future__ import annotations

import json

import pytest

from finegates.files import content_digest
from finegates.suite.runs.llama_record import read_causal_record
from finegates.suite.runs.record import read_record
from finegates.suite.runs.signed import DIGEST, FORMAT_VERSION
from support.paths import ROOT

PUBLISHED = ROOT / "results" / "published"
RECORDS = [
    path.relative_to(PUBLISHED).as_posix()
    for path in sorted(PUBLISHED.glob("**/runs/**/seed*.json"))
]


@pytest.mark.parametrize("tier", sorted({place.split("/")[0] for place in RECORDS}))
def test_a_published_record_keeps_its_sha256_when_it_is_read(tier):
    found = 0
    for place in RECORDS:
        if not place.startswith(f"{tier}/"):
            continue
        raw = json.loads((PUBLISHED / place).read_text(encoding="utf-8"))
        on_text = "experiment" in raw
        record = (read_causal_record if on_text else read_record)(PUBLISHED / place)
        digest = raw.pop(DIGEST, None)
        assert (digest is not None) == (raw["format_version"] == FORMAT_VERSION), place
        read = record.model_dump(mode="json", exclude_unset=True)
        assert content_digest(read) == (digest or content_digest(raw)), place
        found += 1
    assert found


def test_an_entry_that_no_table_reads_is_kept_where_a_record_quotes(tmp_path):
    place = next(place for place in RECORDS if place.startswith("local/runs/"))
    raw = json.loads((PUBLISHED / place).read_text(encoding="utf-8"))
    raw.pop(DIGEST, None)
    raw["config"] = {**raw["config"], "setting_of_another_day": [1, {"deep": None}]}
    path = tmp_path / "seed0.json"
    path.write_text(json.dumps({**raw, DIGEST: content_digest(raw)}))
    assert read_record(path).model_dump(exclude_unset=True) == raw
