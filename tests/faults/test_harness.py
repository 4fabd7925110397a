"""The harness itself: each of its checks fails on a planted error."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from comparison import contents, differences, fragments
from damages import DAMAGES
from kills import kill_at_random
from outcomes import recovery, refusal
from scratch import Scratch, kill, kill_alone, wait_until

from finegates.suite.jobs.seals import seal
from finegates.suite.runs.record import write_record
from support.records import make_record


@pytest.fixture
def whole(tmp_path):
    scratch = Scratch(tmp_path / "whole")
    results = scratch.results
    write_record(make_record(), results / "runs" / "cola" / "full" / "seed0.json")
    for name in ("tables/glue.csv", "timing/cost.csv", "logs/a.log", "models/pretraining.json"):
        (results / name).parent.mkdir(exist_ok=True)
        (results / name).write_text('{"threads": 1, "wall_s": 2.5}')
    seal(results / "tables" / "glue.csv")
    scratch.output.write_text("")
    return scratch


@pytest.fixture
def again(whole, tmp_path):
    scratch = copy.copy(whole)
    scratch.results = Path(shutil.copytree(whole.results, tmp_path / "again"))
    return scratch


def test_two_runs_that_differ_in_times_alone_are_the_same(whole, again):
    write_record(make_record(timing={"wall_s": 99.0}), again.results / "runs/cola/full/seed0.json")
    (again.results / "timing/cost.csv").write_text("other times")
    (again.results / "logs/a.log").write_text("other words")
    (again.results / "models/pretraining.json").write_text('{"threads": 1, "wall_s": 9.5}')
    assert differences(again.results, whole.results) == []
    assert recovery(again, whole, 0) == ("recovers", "")


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda r: (r / "tables/glue.csv").unlink(), "tables/glue.csv: missing"),
        (lambda r: (r / "tables/more.csv").touch(), "tables/more.csv: too many"),
        (lambda r: (r / "tables/glue.csv").write_text("{"), "tables/glue.csv: another content"),
        (
            lambda r: write_record(make_record(seed=7), r / "runs/cola/full/seed0.json"),
            "runs/cola/full/seed0.json: another content",
        ),
        (
            lambda r: (r / "runs/cola/full/seed0.json").write_text('{"format_version"'),
            "runs/cola/full/seed0.json: another content",
        ),
        (
            lambda r: (r / "models/pretraining.json").write_text('{"threads": 2, "wall_s": 2.5}'),
            "models/pretraining.json: another content",
        ),
        (lambda r: (r / "tables/.17.glue.csv").touch(), "tables/.17.glue.csv: left behind"),
    ],
)
def test_every_planted_difference_is_told(whole, again, harm, told):
    harm(again.results)
    found, message = recovery(again, whole, 0)
    assert found == "differs"
    assert told in message


def test_a_number_that_a_run_draws_anew_is_found(whole, again):
    """Plants nondeterminism in a key that is not a time."""
    record = make_record().model_copy(update={"realised_sparsity": 0.2500001})
    write_record(record, again.results / "runs/cola/full/seed0.json")
    assert differences(again.results, whole.results) == [
        "runs/cola/full/seed0.json: another content"
    ]


def test_a_run_that_has_not_finished_may_lack_files_but_have_no_half_ones(whole, again):
    (again.results / "tables/glue.csv").unlink()
    assert differences(again.results, whole.results, finished=False) == []
    DAMAGES["cut short"](again.results / "runs/cola/full/seed0.json")
    assert len(differences(again.results, whole.results, finished=False)) == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_changes_a_file_and_not_its_date(whole, damage):
    path = whole.results / "tables/glue.csv"
    before, date = path.read_bytes(), path.stat().st_mtime_ns
    DAMAGES[damage](path)
    assert path.read_bytes() != before
    assert path.stat().st_mtime_ns == date


@pytest.mark.parametrize(
    ("status", "printed", "found"),
    [
        (1, "error: SealError: a.csv is damaged; run again", "refuses"),
        (0, "error: SealError: a.csv is damaged; run again", "goes on"),
        (1, "error: SealError: something is damaged", "fails, without naming a.csv, run again"),
        (1, "Traceback (most recent call last):", "fails, without naming a.csv, run again"),
    ],
)
def test_only_an_error_that_names_thing_and_remedy_is_a_refusal(whole, status, printed, found):
    whole.output.write_text(printed)
    assert refusal(whole, status, "a.csv", "run again")[0] == found


def test_fragments_are_known_by_their_names(tmp_path):
    for name in (".12.a.csv", ".a.csv.sha256", ".lock", "a.12.csv"):
        (tmp_path / name).touch()
    assert fragments(tmp_path) == [".12.a.csv"]
    assert list(contents(tmp_path)) == ["a.12.csv"]


TORN = """
import pathlib, time
path = pathlib.Path("results/reduced/tables/glue.csv")
path.parent.mkdir(parents=True, exist_ok=True)
if not path.exists():
    path.write_text("half")
    time.sleep(600)
"""


def test_a_half_written_file_is_found_after_a_kill(whole, tmp_path, monkeypatch):
    """A workflow that writes files in place is killed while it writes."""
    monkeypatch.setattr(Scratch, "command", lambda *a: [sys.executable, "-c", TORN])
    kills = kill_at_random(tmp_path / "k", whole, 1, seed=3, duration=30)
    (outcome,) = kills.outcomes
    assert outcome.found == "half-written files"
    assert "tables/glue.csv: another content" in outcome.message


def test_a_kill_reaches_all_that_was_started(tmp_path):
    scratch = Scratch(tmp_path / "s")
    process = scratch.start(["sh", "-c", "sleep 601 & sleep 602"])
    wait_until(lambda: len(psutil.Process(process.pid).children()) == 2, "children", 30)
    children = psutil.Process(process.pid).children()
    kill(process)
    psutil.wait_procs(children, timeout=10)
    assert not any(child.is_running() for child in children)


def test_a_kill_of_the_workflow_alone_spares_its_jobs(tmp_path):
    scratch = Scratch(tmp_path / "s")
    (scratch.folder / ".snakemake" / "scripts").mkdir(parents=True)
    job = scratch.folder / ".snakemake" / "scripts" / "a.py"
    job.write_text("import time; time.sleep(600)")
    process = scratch.start(["sh", "-c", f"sleep 601 & {sys.executable} {job}; true"])
    shell = psutil.Process(process.pid)
    wait_until(lambda: any(str(job) in c.cmdline() for c in shell.children()), "the job", 30)
    (spared,) = kill_alone(process)
    assert spared.is_running()
    spared.kill()


def test_the_rules_at_work_are_read_off_the_log_of_the_last_command(tmp_path):
    whole = Scratch(tmp_path / "s")
    log = whole.folder / ".snakemake" / "log" / "2026-01-01T000000.snakemake.log"
    log.parent.mkdir(parents=True)
    log.write_text("rule earlier:\n    jobid: 3\n")
    whole.run(["true"])
    assert whole.at_work() == "starting up"
    log = log.with_name("2026-01-01T000001.snakemake.log")
    begun = "localrule finetune:\n    log: x\n    jobid: 3\nrule solve_toys:\n    jobid: 4\n"
    log.write_text(begun)
    assert whole.at_work() == "finetune + solve_toys"
    log.write_text(f"{begun}Finished jobid: 3 (Rule: finetune)\n")
    assert whole.at_work() == "solve_toys"
    log.write_text(f"{begun}Finished jobid: 3 (R)\nFinished jobid: 4 (R)\n")
    assert whole.at_work() == "between jobs"


def test_waiting_has_an_end():
    with pytest.raises(TimeoutError, match="for rain"):
        wait_until(lambda: False, "rain", 0.05)


def test_the_command_is_the_one_that_users_type(tmp_path):
    command = Scratch(tmp_path / "s").command(2)
    shown = subprocess.run(
        [*command, "--dry-run"], cwd=tmp_path / "s", capture_output=True, text=True, check=True
    ).stdout
    assert "finegates verify reduced.yaml" in shown
    assert "snakemake all --cores 2 --config tier=reduced.yaml" in shown
