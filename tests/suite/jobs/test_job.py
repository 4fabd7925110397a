"""Shared parts of the workflow's jobs: logs, failures, cost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from finegates.suite.jobs.job import seconds_since_start
from finegates.suite.jobs.seals import check_seal, is_sealed, seal
from finegates.suite.tables.cost import cost_table
from support.records import make_record

SCRIPT = """
import sys
from finegates.suite.jobs.job import job_log
with job_log("job.log"):
    print("working")
    print("warning", file=sys.stderr)
    {body}
print("after")
"""


def run(tmp_path, body):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.format(body=body)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )


def test_what_a_job_prints_lands_in_its_log_alone(tmp_path):
    done = run(tmp_path, "pass")
    assert done.returncode == 0
    assert done.stdout == "after\n"
    assert set((tmp_path / "job.log").read_text().split()) == {"working", "warning"}


def test_a_failure_is_one_line_on_the_terminal_and_a_traceback_in_the_log(tmp_path):
    done = run(tmp_path, "raise ValueError('no such column')")
    assert done.returncode == 1
    assert done.stderr == "error: ValueError: no such column (log: job.log)\n"
    assert "Traceback" in (tmp_path / "job.log").read_text()
    assert done.stdout == ""


COLLECTED = """
import gc
import weakref
from finegates.suite.jobs.job import collect_later

class Node:
    def __init__(self):
        self.me = self

usual, before = gc.get_threshold(), gc.get_stats()
collect_later()
import torch
assert gc.get_stats() == before
kept = Node()
gc.collect()
assert gc.get_threshold() == usual
assert not gc.callbacks
libraries = gc.get_freeze_count()
assert libraries > 50_000
garbage = weakref.ref(Node())
gc.collect()
assert garbage() is None
assert gc.get_freeze_count() == libraries
"""


def test_garbage_is_collected_from_what_a_job_makes_after_its_imports():
    done = subprocess.run([sys.executable, "-c", COLLECTED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


JOB = """
import os
from pathlib import Path
from types import SimpleNamespace
from finegates.suite.jobs.job import running
job = SimpleNamespace(log=["job.log"], input=["in.csv"], output=["out.csv", "model"])
with running(job):
    Path("out.csv").write_text(Path("in.csv").read_text().upper())
    Path("model").mkdir()
    {body}
"""


def work(tmp_path, body="pass"):
    return subprocess.run(
        [sys.executable, "-c", JOB.format(body=body)], cwd=tmp_path, capture_output=True, text=True
    )


def test_a_job_seals_what_it_writes(tmp_path):
    (tmp_path / "in.csv").write_text("a")
    (tmp_path / ".7.out.csv").write_text("what a killed job left")
    assert work(tmp_path).returncode == 0
    assert check_seal(tmp_path / "out.csv")
    assert check_seal(tmp_path / "model")
    assert not is_sealed(tmp_path / "in.csv")
    assert not (tmp_path / ".7.out.csv").exists()


def test_a_job_refuses_an_input_that_is_not_as_it_was_written(tmp_path):
    (tmp_path / "in.csv").write_text("a")
    seal(tmp_path / "in.csv")
    (tmp_path / "in.csv").write_text("b")
    done = work(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: SealError: in.csv is not as its job wrote it")
    assert "Delete in.csv and run again" in done.stderr
    assert not (tmp_path / "out.csv").exists()


def test_numpys_products_do_not_depend_on_the_cores_at_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "8")
    (tmp_path / "in.csv").touch()
    check = "import os; assert os.environ['OPENBLAS_NUM_THREADS'] == '1'"
    assert work(tmp_path, check).returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_said_even_where_the_log_has_no_room(tmp_path):
    (tmp_path / "in.csv").touch()
    (tmp_path / "job.log").symlink_to("/dev/full")
    done = work(tmp_path, "raise OSError(28, os.strerror(28))")
    assert done.returncode == 1
    assert "error: OSError: [Errno 28] No space left on device; the disk of" in done.stderr
    assert "is full: free some space and run again" in done.stderr


def test_a_log_that_cannot_be_opened_is_an_error_that_names_it(tmp_path):
    (tmp_path / "in.csv").touch()
    (tmp_path / "job.log").mkdir()
    done = work(tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith("Is a directory: 'job.log' (log: job.log)\n")


def test_a_job_that_fails_seals_nothing(tmp_path):
    (tmp_path / "in.csv").write_text("a")
    assert work(tmp_path).returncode == 0
    assert work(tmp_path, "raise ValueError").returncode == 1
    assert not is_sealed(tmp_path / "out.csv")


def test_start_up_is_counted_from_the_start_of_the_process():
    assert 0 < seconds_since_start() < 24 * 3600


def test_the_cost_table_takes_untimed_jobs_to_start_as_a_training_process_does(tmp_path):
    benchmarks = tmp_path / "benchmarks"
    (benchmarks / "finetune").mkdir(parents=True)
    header = "s\tmax_rss\n"
    (benchmarks / "finetune" / "cola.tsv").write_text(header + "100\t800\n")
    (benchmarks / "finetune" / "rte.tsv").write_text(header + "50\t900\n")
    (benchmarks / "pretrain_encoder.tsv").write_text(header + "60\t700\n")
    (benchmarks / "generate_language.tsv").write_text(header + "2\tNA\n")
    (benchmarks / "solve_toys.tsv").write_text(header + "20\t400\n")
    pretraining = tmp_path / "pretraining.json"
    pretraining.write_text(json.dumps({"startup_s": 6.0}))
    records = [
        make_record(timing={**make_record().timing, "startup_s": 3.0}, seed=seed) for seed in (0, 1)
    ]
    table = cost_table(records, benchmarks, pretraining).set_index("rule")
    assert table.loc["finetune", ["jobs", "wall_s", "startup_s"]].tolist() == [2, 150, 6]
    assert table.loc["pretrain_encoder", "startup_s"] == 6
    assert table.loc["generate_language", "startup_s"] == 2
    assert table.loc["solve_toys", "startup_s"] == 3
    assert table.loc["total", "wall_s"] == pytest.approx(232)
    assert table.loc["total", "startup_s"] == pytest.approx(17)
    assert table.loc["total", "peak_memory_mib"] == 900


def test_restored_runs_cost_what_their_records_say(tmp_path):
    (tmp_path / "tabulate_glue.tsv").write_text("s\tmax_rss\n5\t100\n")
    table = cost_table([make_record(seed=0), make_record(seed=1)], tmp_path, None)
    table = table.set_index("rule")
    assert table.loc["finetune", ["jobs", "wall_s", "startup_s"]].tolist() == [2, 25, 2]
    assert table.loc["tabulate_glue", "startup_s"] == 1
    assert table.loc["total", "wall_s"] == 30
