"""A tier's file is found by name or path; a copy is a tier of its own, or an error says why not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from finegates.suite.config.load import CONFIG, ConfigError, configured_tier
from finegates.suite.config.tier_files import check_folder, known_tiers
from finegates.suite.runs.record import write_record
from support.records import make_record

ROOT = CONFIG.parent


@pytest.fixture
def copied(tmp_path) -> Path:
    return Path(shutil.copy(CONFIG / "local.yaml", tmp_path / "local.yaml"))


def test_the_tiers_are_the_files_that_name_one():
    assert set(known_tiers()) == {p.stem for p in CONFIG.glob("*.yaml")} - {"claims"}
    assert known_tiers()["structured"] == "results/structured"


def test_a_copy_with_the_same_content_is_the_same_tier(copied):
    """The tier that it extends is found in the repository's folder if not next to the copy."""
    assert configured_tier({"tier": str(copied)}) == configured_tier({"tier": "local"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds: [0]": "seeds: [0, 1]"}, r"tier: 'local' belongs to tier 'local'"),
        ({"tier: local": "tier: mine"}, r"results: 'results/local' belongs to tier 'local'"),
        ({"results: results/local": "results: results/x"}, r"tier: 'local' belongs to"),
    ],
)
def test_a_changed_copy_must_have_a_name_and_results_of_its_own(copied, changes, message):
    text = copied.read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    copied.write_text(text)
    with pytest.raises(ConfigError, match=rf"local\.yaml: {message}.*set tier: and results: to"):
        configured_tier({"tier": str(copied)})


def test_a_changed_copy_with_a_name_and_results_of_its_own_is_a_tier(copied):
    text = copied.read_text().replace("tier: local", "tier: mine")
    copied.write_text(text.replace("results: results/local", "results: results/mine"))
    assert configured_tier({"tier": str(copied)}).tier == "mine"


def test_a_file_that_is_extended_and_not_there_is_named_with_both_places(copied):
    copied.write_text("extends: absent.yaml\n")
    with pytest.raises(ConfigError, match=r"extends: no file 'absent.yaml' in .* and none in .*"):
        configured_tier({"tier": str(copied)})


def test_a_folder_with_runs_of_another_tier_is_refused(tmp_path):
    write_record(make_record(tier="smoke"), tmp_path / "runs" / "cola" / "full" / "seed0.json")
    check_folder("smoke", str(tmp_path))
    with pytest.raises(ConfigError, match=r"runs of tier 'smoke', and this is tier 'mine'; set"):
        check_folder("mine", str(tmp_path))
    check_folder("mine", str(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("restore TIER=lokal", "no published results of a tier 'lokal'; did you mean 'local'?"),
        ("restore TIER=faults", "no published results of a tier 'faults'"),
        ("restore", "name a published tier, for example make restore TIER=local"),
        ("clean TIER=lokal", "are called 'lokal'; did you mean 'local'?"),
        ("clean TIER=published", "'published' is not a tier"),
        ("reproduce TIER=lokal", "no tier 'lokal'; did you mean 'local'?"),
    ],
)
def test_a_target_of_make_names_the_nearest_tier_in_one_line(target, message):
    command = ["make", "--no-print-directory", *target.split()]
    # A make that runs these tests passes on its depth and flags, and prints both.
    outside = {k: v for k, v in os.environ.items() if k not in {"MAKELEVEL", "MAKEFLAGS", "MFLAGS"}}
    done = subprocess.run(
        command, cwd=ROOT, env=outside, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert done.stdout == ""
    said, make = done.stderr.splitlines()
    assert said.startswith("make")
    assert message in said
    assert make.startswith("make: ***")
