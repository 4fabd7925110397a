"""Faults from outside the workflow.

Orphaned jobs, two runs at once, a full disk, missing permissions, a clock set back, missing files.
"""

from __future__ import annotations

import copy
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from damages import DAMAGES
from outcomes import Outcome, recovery, refusal
from scratch import Scratch, ended, kill_alone, wait_until

GATED = "llama/runs/pretraining/tiny/gated-s0.4/seed0.json"
CHECKPOINTS = "llama/checkpoints/pretraining/tiny/gated-s0.4/seed0"
HOUR_NS = 3600 * 10**9


def _without(folder: Path, whole: Scratch, *names: str) -> Scratch:
    """A working copy with the results of a finished run, except some files."""
    scratch = Scratch(folder, like=whole)
    for name in names:
        (scratch.results / name).unlink()
    return scratch


def jobs_left_alone(folder: Path, whole: Scratch) -> Iterator[Outcome]:
    """The workflow is killed and its job is not: the job blocks the next run until it has ended."""
    scratch = _without(folder, whole, GATED, "llama/tables/pretraining.csv")
    with ended(scratch.start()) as process:
        wait_until(lambda: list((scratch.results / CHECKPOINTS).glob("checkpoint-*")), "training")
        jobs = kill_alone(process)
        for job in jobs:
            job.suspend()  # or it might end before the next run looks
        found, message = refusal(scratch, scratch.run(), "another run is at work", str(jobs[0].pid))
        yield Outcome(
            "workflow killed, its job at work: run again",
            "pretrain_llama",
            "refuses",
            found,
            message,
        )
        for job in jobs:
            job.resume()
        wait_until(lambda: not any(job.is_running() for job in jobs), "the job's end")
    found, message = recovery(scratch, whole, scratch.run())
    yield Outcome(
        "workflow killed: run again after its job", "pretrain_llama", "recovers", found, message
    )


def two_runs_at_once(folder: Path, whole: Scratch) -> Iterator[Outcome]:
    """Starts a second run while the first is active.

    The first is from scratch, on another number of cores than the undisturbed run.
    """
    first = Scratch(folder)
    with ended(first.start()) as process:
        wait_until(lambda: (first.results / ".lock").exists() or process.poll() is not None, "run")
        second = copy.copy(first)
        second.output = folder / "second.txt"
        found, message = refusal(second, second.run(), "another run is at work", "wait for it")
        yield Outcome("two runs in one folder", "the second", "refuses", found, message)
        status = process.wait()
    found, message = recovery(first, whole, status)
    yield Outcome(
        "two runs in one folder", "the first, from scratch on one core", "recovers", found, message
    )


def damaged_checkpoints(folder: Path, whole: Scratch) -> Iterator[Outcome]:
    """The newest checkpoint is damaged: training resumes from the one before."""
    for number, (damage, harm) in enumerate(DAMAGES.items()):
        scratch = _without(folder / str(number), whole, GATED, "llama/tables/pretraining.csv")
        places = scratch.results / CHECKPOINTS
        seals = functools.partial(lambda folder: list(folder.glob("checkpoint-*/.sha256")), places)
        with ended(scratch.start()):
            wait_until(lambda seals=seals: len(seals()) > 1, "two whole checkpoints")
        newest = max(seals(), key=lambda seal: int(seal.parent.name.rpartition("-")[2])).parent
        harm(newest / "model.safetensors")
        status = scratch.run()
        found, message = recovery(scratch, whole, status)
        log = (scratch.results / "logs/pretrain_llama/tiny/gated-s0.4/seed0.log").read_text()
        told = [line for line in log.splitlines() if line.startswith(("passed over", "continuing"))]
        if found == "recovers" and len(told) != 2:
            found = "recovers, but does not say from where"
        message = message or "; ".join(told)
        yield Outcome(f"killed, then {damage}", "newest checkpoint", "recovers", found, message)


def deleted_intermediates(folder: Path, whole: Scratch) -> Iterator[Outcome]:
    """Intermediate files are missing, together with a table that needs them."""
    for number, name in enumerate(("data/cola/train.parquet", "runs/cola/distilled/seed0.json")):
        scratch = _without(folder / str(number), whole, name, "tables/glue.csv")
        found, message = recovery(scratch, whole, scratch.run())
        yield Outcome("an intermediate file and a table deleted", name, "recovers", found, message)


def clock_set_back(folder: Path, whole: Scratch) -> Iterator[Outcome]:
    """All files have dates an hour in the future, and half of the work is still to be done."""
    scratch = _without(folder, whole, GATED, "llama/tables/pretraining.csv", "tables/glue.csv")
    for path in (p for name in ("results", ".snakemake") for p in (folder / name).rglob("*")):
        then = path.stat().st_mtime_ns + HOUR_NS
        os.utime(path, ns=(then, then))
    found, message = refusal(scratch, scratch.run(), "in the future", "run again")
    yield Outcome("clock set back by an hour", "half-way", "refuses", found, message)
    subprocess.run(["find", scratch.results, "-exec", "touch", "{}", "+"], check=True)
    found, message = recovery(scratch, whole, scratch.run())
    yield Outcome(
        "clock set back: one date for all, as told", "half-way", "recovers", found, message
    )


def memory_cut_short(folder: Path, whole: Scratch) -> Iterator[Outcome]:
    """Snakemake's metadata of its jobs is truncated, as by a power failure."""
    scratch = _without(folder, whole, "tables/glue.csv")
    for path in (folder / ".snakemake" / "metadata").rglob("*"):
        if path.is_file():
            DAMAGES["cut short"](path)
    found, message = recovery(scratch, whole, scratch.run())
    yield Outcome(
        "Snakemake's memory of its jobs cut short", "all of it", "recovers", found, message
    )


_MOUNTING = ["unshare", "--mount", "sh", "-ec"]
if os.geteuid() != 0:
    _MOUNTING[1:1] = ["--user", "--map-root-user"]


@functools.cache
def may_mount() -> bool:
    """Whether a file system can be mounted here for a single process."""
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run([*_MOUNTING, "mount -t tmpfs tmpfs /mnt"], capture_output=True)
    return tried.returncode == 0


def full_disk(folder: Path, whole: Scratch) -> Iterator[Outcome]:
    """A disk too small for the results; then it has room, and the same command runs again.

    If mounting is not possible, a limit on the size of files replaces the full disk.
    """
    scratch = Scratch(folder)
    (folder / "results").mkdir()
    make = _quoted(scratch.command())
    if may_mount():
        size = sum(p.stat().st_blocks * 512 for p in whole.results.rglob("*")) // 2
        # Only these commands see the disk, so its content is copied before they end.
        steps = [
            f"mount -t tmpfs -o size={size} tmpfs results",
            f"status=0; {make} > full.txt 2>&1 || status=$?; echo $status > full.status",
            "mount -o remount,size=1g results",
            make,
            "mkdir after; cp -a results/. after",
        ]
        shell, reason = _MOUNTING, "is full"
    else:
        limited = f"(ulimit -f 64; exec {make}) > full.txt 2>&1"
        steps = [f"status=0; {limited} || status=$?; echo $status > full.status", make]
        steps += ["mkdir after; cp -a results/. after"]
        shell, reason = ["sh", "-ec"], "File too large"
    status = scratch.run([*shell, "\n".join(steps)])
    then = copy.copy(scratch)
    then.output = folder / "full.txt"
    failed = int((folder / "full.status").read_text())
    found, message = refusal(then, failed, reason, "full: free some space and run again")
    yield Outcome("disk full", "results", "refuses", found, message)
    scratch.results = folder / "after" / "reduced"
    found, message = recovery(scratch, whole, status)
    yield Outcome("disk full: run again with room", "results", "recovers", found, message)


def read_only_results(folder: Path, whole: Scratch) -> Iterator[Outcome]:
    """Read-only results, with jobs left to run."""
    scratch = _without(folder, whole, "tables/glue.csv")
    make = _quoted(scratch.command())
    if may_mount():
        steps = f"mount --bind results results; mount -o remount,ro,bind results; {make}"
        status = scratch.run([*_MOUNTING, steps])
    else:
        scratch.results.chmod(0o500)
        (scratch.results / ".lock").unlink(missing_ok=True)
        status = scratch.run()
        scratch.results.chmod(0o700)
    found, message = refusal(scratch, status, "cannot write to", "make it writable")
    yield Outcome("results read-only", "results", "refuses", found, message)


def _quoted(command: list[str]) -> str:
    return " ".join(f"'{word}'" for word in command)
