"""The terminal of a run: one line a job, time left, errors in full, where to look at the end."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import pytest
from snakemake.logging import DefaultFormatter
from snakemake_interface_logger_plugins.common import LogEvent

from finegates.suite.jobs.terminal import LAST_SILENCE_S, Terminal
from finegates.suite.jobs.times import Times


class Clock:
    """A clock with a settable time."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Run:
    """A terminal, and the records that Snakemake sends during a run."""

    def __init__(self, results: Path, *, dry: bool = False, times: Times | None = None) -> None:
        self.clock = Clock()
        self.stream = io.StringIO()
        self.times = times or Times("tiny")
        self.times.write = lambda folder=None: None  # type: ignore[method-assign]
        self.terminal = Terminal(
            self.stream,
            results,
            self.times,
            dry=dry,
            render=DefaultFormatter(quiet=None).format,
            clock=self.clock,
        )

    def say(self, message: str | None = None, level: int = logging.INFO, **extra: object) -> str:
        """Sends a record and returns the text written for it."""
        before = len(self.stream.getvalue())
        record = logging.makeLogRecord({"msg": message, "levelno": level, **extra})
        self.terminal.handle(record)
        return self.stream.getvalue()[before:]

    def plan(self, cores: int = 2, **stats: int) -> str:
        self.say(f"Provided cores: {cores}", event=LogEvent.RESOURCES_INFO, cores=cores)
        stats["total"] = sum(stats.values())
        return self.say("Job stats:", event=LogEvent.RUN_INFO, stats=stats)

    def start(self, number: int, rule: str, **wildcards: str) -> str:
        many = [f"results/{'x' * 90}/{index}.json" for index in range(100)]
        return self.say(
            f" Rule: {rule}", event=LogEvent.JOB_INFO, jobid=number, rule_name=rule,
            wildcards=wildcards, threads=1, input=many, output=many, reason="Missing: ..." * 900,
        )  # fmt: skip

    def end(self, number: int, done: int, total: int) -> str:
        said = self.say("Finished jobid", event=LogEvent.JOB_FINISHED, job_id=number)
        return said + self.say(event=LogEvent.PROGRESS, done=done, total=total)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    (folder / "tables").mkdir(parents=True)
    (folder / "report.html").touch()
    return folder


def test_a_job_is_one_line_when_it_ends_with_its_time_and_the_time_left(results):
    run = Run(results)
    run.plan(cores=2, finetune=3, tabulate=1)
    assert run.start(1, "finetune", task="sst2") == ""
    run.clock.now += 80
    line = run.end(1, 1, 4)
    # Three more jobs of 80 s each, like the one that ended, on two cores.
    assert line.split("   ")[-1] == "about 2 min left\n"
    assert line.split()[:5] == ["1", "of", "4", "finetune", "sst2"]
    assert "1 min 20 s" in line
    assert line.count("\n") == 1
    assert len(line) <= 100


def test_what_is_at_work_counts_as_half_done_after_half_of_its_time(results):
    times = Times("tiny", {"finetune": (100.0, 1), "tabulate": (20.0, 1)})
    run = Run(results, times=times)
    assert "2 jobs on 1 core, about 2 min" in run.plan(cores=1, finetune=1, tabulate=1)
    run.start(1, "tabulate")
    run.start(2, "finetune")
    run.clock.now += 20
    assert run.end(1, 1, 2).endswith("about 1 min 20 s left\n")


def test_on_a_cluster_as_many_jobs_run_as_are_at_work(results):
    run = Run(results, times=Times("tiny", {"finetune": (60.0, 1)}))
    run.say("Provided remote nodes: 4", event=LogEvent.RESOURCES_INFO, nodes=4)
    run.say("Job stats:", event=LogEvent.RUN_INFO, stats={"finetune": 9, "total": 9})
    for number in range(5):
        run.start(number, "finetune")
    run.clock.now += 60
    # Of the eight remaining jobs four are running, and their minute is over.
    assert run.end(0, 1, 9).endswith("about 1 min left\n")


def test_no_line_is_long_whatever_a_job_reads(results, monkeypatch):
    monkeypatch.chdir(results.parent)
    run = Run(Path("results"))
    run.plan(finetune=1)
    run.start(1, "finetune")
    run.end(1, 1, 1)
    assert max(map(len, run.stream.getvalue().splitlines())) < 120


def test_before_it_starts_a_run_says_what_takes_how_long_on_how_many_cores(results):
    known = {"finetune": (120.0, 1), "time_step": (30.0, 2), "draw": (3.0, 1)}
    run = Run(results, times=Times("tiny", known, " (as measured on a CPU)"))
    said = run.plan(cores=2, draw=2, finetune=3, time_step=1)
    # Two cores share 3 x 120 + 2 x 3 s; the benchmark uses both for 30 s.
    assert said.splitlines()[0] == "6 jobs on 2 cores, about 3 min 33 s (as measured on a CPU)"
    listed = [line.split() for line in said.splitlines()[1:4]]
    assert [words[0] for words in listed] == ["finetune", "time_step", "draw"]
    assert listed[0][1:] == ["3", "6", "min"]


def test_without_times_of_every_rule_nothing_is_said_of_the_whole(results):
    run = Run(results, times=Times("tiny", {"finetune": (120.0, 1)}, " (as measured on a CPU)"))
    said = run.plan(cores=2, finetune=3, draw=1)
    assert said.splitlines()[0] == "4 jobs on 2 cores"
    assert said.splitlines()[1].split() == ["finetune", "3", "6", "min"]


def test_silence_ends_after_half_a_minute_and_never_lasts_ten(results):
    run = Run(results)
    run.plan(pretrain=1)
    run.start(1, "pretrain", model="tiny")
    gaps, last = [], run.clock.now
    for _ in range(2 * 3600):
        run.clock.now += 1
        before = len(run.stream.getvalue())
        run.terminal.look()
        if len(run.stream.getvalue()) > before:
            gaps.append(run.clock.now - last)
            last = run.clock.now
            assert "at work: pretrain tiny (" in run.stream.getvalue()[before:]
    assert gaps[0] == 30
    assert max(gaps) == LAST_SILENCE_S < 600


def test_nothing_at_work_is_nothing_to_say(results):
    run = Run(results)
    run.clock.now += 1000
    run.terminal.look()
    assert run.stream.getvalue() == ""


def test_the_end_says_where_to_look_and_only_at_what_there_is(results):
    run = Run(results)
    run.plan(finetune=1)
    run.start(1, "finetune")
    said = run.end(1, 1, 1)
    assert str(results / "report.html") in said
    assert str(results / "tables") in said
    assert "figures" not in said


def test_a_run_with_nothing_to_do_says_where_to_look_too(results):
    said = Run(results).say("Nothing to be done (all requested files are present).")
    assert said.startswith("Nothing to be done")
    assert str(results / "report.html") in said


def test_a_job_that_fails_shows_its_rule_its_log_and_the_end_of_that(results, tmp_path):
    log = tmp_path / "finetune.log"
    log.write_text("".join(f"line {n}\n" for n in range(300)) + " 3%|x\r 9%|x\rerror: too hot\n")
    run = Run(results)
    run.start(7, "finetune")
    said = run.say(
        "Error in rule finetune", logging.ERROR, event=LogEvent.JOB_ERROR, jobid=7, aux={},
        rule_name="finetune", output=["a.json"], log=[str(log), str(tmp_path / "none.log")],
    )  # fmt: skip
    assert "FAILED: finetune (job 7)" in said
    assert str(log) in said
    assert "\nerror: too hot\n" in said
    assert "\nline 299\n" in said
    assert "line 100" not in said
    assert "none.log (not written)" in said
    assert run.terminal.running == {}


def test_a_job_that_fails_is_shown_once(results):
    wrapped = 'RuleException:\nCalledProcessError in file "train.smk", line 36:\nCommand ...'
    assert Run(results).say(wrapped, logging.WARNING) == ""


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR, logging.CRITICAL])
def test_every_warning_and_error_is_shown(results, level):
    assert Run(results).say("Select jobs to execute... not", level) != ""


def test_what_an_executor_says_is_shown(results):
    message = "Job 3 has been submitted with SLURM jobid 12 (log: x)."
    assert Run(results).say(message) == f"{message}\n"


def test_a_dry_run_is_a_short_table_of_every_rule(results):
    run = Run(results, dry=True)
    said = run.plan(finetune=3, draw=2, **{f"rule_{n}": 1 for n in range(40)})
    said += run.start(1, "finetune") + run.plan(finetune=3, draw=2)
    lines = said.splitlines()
    assert lines[0] == "45 jobs"
    assert lines[1].split() == ["finetune", "3"]
    assert lines[2].split() == ["draw", "2"]
    assert len(lines) == 44
    assert max(map(len, lines)) < 100
