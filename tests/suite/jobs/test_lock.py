"""The lock of a results folder: one run at a time, and no leftovers after a kill."""

import os
import signal
import subprocess
import sys

import pytest

from finegates.suite.jobs.lock import LockError, check_writable, hold

RUN = """
import sys, time
from finegates.suite.jobs.lock import hold
hold(sys.argv[1], shared="shared" in sys.argv)
print("holding", flush=True)
time.sleep(600)
"""

# A run that starts a job and is killed, while the job survives.
PARENT = """
import subprocess, sys, time
from finegates.suite.jobs.lock import hold
hold(sys.argv[1])
job = "from finegates.suite.jobs.lock import at_work; import time\\n" \
      "with at_work(): print('holding', flush=True); time.sleep(600)"
print(subprocess.Popen([sys.executable, "-c", job]).pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def start(tmp_path):
    started = []

    def starter(code, *arguments):
        command = [sys.executable, "-c", code, str(tmp_path), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield starter
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("FINEGATES_LOCK", "")  # restored afterwards
    monkeypatch.delenv("FINEGATES_LOCK")


def test_a_second_run_is_refused_and_told_who_the_first_is(start, tmp_path):
    first = start(RUN)
    assert first.stdout.readline() == "holding\n"
    with pytest.raises(LockError, match=rf"at work in {tmp_path} \(processes {first.pid} \("):
        hold(tmp_path)


def test_a_kill_leaves_no_lock_behind(start, tmp_path):
    first = start(RUN)
    first.stdout.readline()
    first.kill()
    first.wait()
    hold(tmp_path)


def test_a_job_that_outlives_its_run_keeps_the_next_run_out(start, tmp_path):
    run = start(PARENT)
    job = int(run.stdout.readline())
    assert run.stdout.readline() == "holding\n"
    run.kill()
    run.wait()
    with pytest.raises(LockError, match=rf"processes {job} \("):
        hold(tmp_path)
    os.kill(job, signal.SIGKILL)
    run.stdout.read()  # until the job has ended
    hold(tmp_path)


def test_a_run_beside_another_must_say_so(start, tmp_path):
    for _ in range(2):
        assert start(RUN, "shared").stdout.readline() == "holding\n"
    with pytest.raises(LockError, match="--config lock=shared"):
        hold(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(LockError, match="cannot write to .*make it writable"):
        hold(tmp_path / "results")


def test_a_folder_on_a_read_only_file_system_is_refused_before_any_job(tmp_path, monkeypatch):
    check_writable(tmp_path)
    check_writable(tmp_path / "not there yet")
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(LockError, match=r"cannot write to .*read-only.*make it writable"):
        check_writable(tmp_path)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "results").touch()
    with pytest.raises(LockError, match="cannot write to .*results"):
        hold(tmp_path / "results")
