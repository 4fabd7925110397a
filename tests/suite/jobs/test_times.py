"""Job durations: measured once, announced the next time."""

from __future__ import annotations

import pytest

from finegates.suite.jobs.times import Times, spoken


def measured() -> Times:
    times = Times("tiny")
    times.add("finetune", 90.0, 1)
    times.add("finetune", 110.0, 1)
    times.add("time_step", 30.0, 4)
    return times


def test_what_a_run_measured_the_next_one_expects(tmp_path):
    measured().write(tmp_path)
    times = Times.read("tiny", (tmp_path,))
    assert times.known == {"finetune": (100.0, 1), "time_step": (30.0, 4)}
    assert times.of("finetune", 3) == 300.0
    assert " (as measured on " in times.source


def test_a_part_of_a_run_changes_only_what_it_measured(tmp_path):
    measured().write(tmp_path)
    times = Times.read("tiny", (tmp_path,))
    times.add("time_step", 60.0, 4)
    times.write(tmp_path)
    assert Times.read("tiny", (tmp_path,)).known == {"finetune": (100.0, 1), "time_step": (60.0, 4)}


def test_own_times_come_before_those_of_others(tmp_path):
    for folder, seconds in (("own", 5.0), ("shipped", 50.0)):
        times = Times("tiny")
        times.add("finetune", seconds, 1)
        times.write(tmp_path / folder)
    folders = (tmp_path / "own", tmp_path / "shipped")
    assert Times.read("tiny", folders).of("finetune") == 5.0
    assert Times.read("tiny", (tmp_path / "none", *folders[1:])).of("finetune") == 50.0


@pytest.mark.parametrize(
    "text",
    ["", "# CPU\n", "# CPU\nrule,seconds,threads\nfinetune,fast,1\n", "# C\nrule,seconds\nx,1\n",
     "# CPU\nrule,seconds,threads\nfinetune,nan,1\n", "\udcff"],
)  # fmt: skip
def test_a_file_of_times_that_cannot_be_read_is_no_error(tmp_path, text):
    (tmp_path / "tiny.csv").write_bytes(text.encode(errors="surrogateescape"))
    assert Times.read("tiny", (tmp_path,)).known == {}


def test_a_machine_half_as_fast_takes_twice_the_time_for_what_comes():
    times = Times("tiny", {"finetune": (100.0, 1), "draw": (10.0, 1)})
    times.add("draw", 20.0, 1)
    assert times.of("finetune") == 200.0


def test_an_unknown_rule_takes_what_others_took_on_average():
    times = Times("tiny")
    assert times.of("finetune") == 0.0
    times.add("draw", 10.0, 1)
    times.add("tabulate", 30.0, 1)
    assert times.of("finetune", 2) == 40.0


def test_jobs_that_take_all_cores_do_not_share_them():
    times = Times("tiny", {"finetune": (100.0, 1), "time_step": (30.0, 4)})
    assert times.left({"finetune": 4, "time_step": 1}, cores=2) == 4 * 100 / 2 + 30
    assert times.left({"finetune": 4, "time_step": 1}, cores=1) == 4 * 100 + 30
    assert times.left({"finetune": 1}, 1, spent={"finetune": 130.0}) == 0.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (200, "3 min 20 s"), (3600, "1 h"),
     (7500, "2 h 5 min"), (3 * 86400 + 4 * 3600 + 50, "3 d 4 h")],
)  # fmt: skip
def test_durations_are_said_in_words(seconds, words):
    assert spoken(seconds) == words
