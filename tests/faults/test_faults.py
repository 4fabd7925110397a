"""The workflow under faults: it recovers, or it refuses and says what to do.

A few kills and most faults always run. ``--run-slow`` adds those that start from scratch. ``make
faults`` tries all of them with many kills and writes the table.
"""

from __future__ import annotations

import time

import pytest
from damages import damage_made_good, damage_met_by_a_job, damaged_files
from interruptions import (
    clock_set_back,
    damaged_checkpoints,
    deleted_intermediates,
    full_disk,
    jobs_left_alone,
    memory_cut_short,
    read_only_results,
    two_runs_at_once,
)
from kills import Kills, kill_at_random
from outcomes import Outcome

from faults import faults_table, undisturbed

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return undisturbed(tmp_path_factory.mktemp("faults") / "undisturbed")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "case",
    [
        damaged_files,
        damage_met_by_a_job,
        damaged_checkpoints,
        jobs_left_alone,
        memory_cut_short,
        read_only_results,
        clock_set_back,
        pytest.param(damage_made_good, marks=slow),
        pytest.param(deleted_intermediates, marks=slow),
        pytest.param(two_runs_at_once, marks=slow),
        pytest.param(full_disk, marks=slow),
    ],
)
def test_a_fault_is_recovered_from_or_refused_clearly(case, whole, tmp_path):
    outcomes = list(case(tmp_path / "scratch", whole))
    assert outcomes
    assert [outcome for outcome in outcomes if not outcome.as_expected] == []


@pytest.mark.thorough
def test_a_run_that_is_killed_at_random_moments_ends_as_if_undisturbed(whole, tmp_path):
    begin = time.monotonic()
    whole.run(whole.command())  # nothing to do: only the time to start
    kills = kill_at_random(tmp_path, whole, 3, seed=1, duration=5 * (time.monotonic() - begin))
    assert len(kills.at) == 3
    assert [outcome for outcome in kills.outcomes if not outcome.as_expected] == []


def test_the_table_tells_kills_apart_by_rule_and_shows_what_went_wrong():
    kills = Kills(
        at=["finetune", "starting up", "finetune"],
        outcomes=[
            Outcome("killed", "finetune", "recovers", "recovers"),
            Outcome("killed", "finetune", "recovers", "differs", "tables/glue.csv"),
            Outcome("killed", "starting up", "recovers", "recovers"),
        ],
    )
    table = faults_table(kills, [Outcome("disk full", "results", "refuses", "refuses", "full")])
    assert table.cells == (
        ("killed", "finetune", "2", "recovers", "differs", "tables/glue.csv"),
        ("killed", "starting up", "1", "recovers", "recovers", ""),
        ("disk full", "results", "1", "refuses", "refuses", "full"),
    )
    assert table.caption.startswith("2 of 3 rows as expected")
