"""Common parts of all jobs: log, errors, lock, seals, start-up time."""

from __future__ import annotations

import errno
import gc
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from finegates.files import remove_fragments
from finegates.suite.jobs.lock import at_work
from finegates.suite.jobs.seals import break_seal, check_seal, seal


@contextmanager
def running(job: Any, *, sealed: bool = True) -> Iterator[None]:
    """Runs the body of a job of the workflow.

    Output goes to a log (:func:`job_log`). The seals of inputs are checked, the job joins the lock
    of its run, and its outputs are sealed at the end.

    Args:
        job: Snakemake's object ``snakemake`` of a script.
        sealed: whether to seal the outputs; committed copies are not sealed.
    """
    collect_later()
    # Rounding of NumPy's matmuls depends on the number of threads, which Snakemake sets to the
    # number of cores. torch gets the tier's number of threads, which is in the records.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with job_log(job.log[0]), at_work():
        for path in job.input:
            check_seal(path)
        for path in job.output:
            break_seal(path)
            remove_fragments(path)
        yield
        for path in job.output if sealed else ():
            seal(path)


def collect_later() -> None:
    """Puts off garbage collection until a process has its libraries, and leaves these out of it.

    Importing torch and transformers makes almost a million objects that stay to the end. Python
    would search them again and again while it imports them, and once more after each training.
    """
    usual = gc.get_threshold()

    def leave_out(phase: str, info: dict[str, int]) -> None:
        gc.callbacks.remove(leave_out)
        gc.set_threshold(*usual)
        gc.freeze()

    gc.callbacks.append(leave_out)  # before the first collection, also one that is called for
    gc.set_threshold(1_000_000, *usual[1:])


@contextmanager
def job_log(path: str | Path) -> Iterator[None]:
    """Redirects standard output and standard error to a log file.

    On failure the traceback is written to the log and one line to the original standard error. Then
    the process exits with status 1.
    """
    path = Path(path)
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.dup(2)
    # Redirect file descriptors, not sys.stdout, because compiled libraries write to them.
    saved = os.dup(1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        yield
    except Exception as error:
        with suppress(OSError):  # the log's disk may be full
            traceback.print_exc()
        line = f"error: {type(error).__name__}: {error}{_remedy(error, path)} (log: {path})\n"
        os.write(terminal, line.encode())
        sys.exit(1)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os.dup2(saved, 1)
        os.dup2(terminal, 2)
        os.close(saved)
        os.close(terminal)


def _remedy(error: Exception, log: Path) -> str:
    """A remedy if the disk is full, which libraries report in many ways or not at all."""
    place = next(folder for folder in log.parents if folder.is_dir())
    reasons = (os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
    if any(reason in str(error) for reason in reasons) or shutil.disk_usage(place).free < 1 << 16:
        return f"; the disk of {place} is full: free some space and run again"
    return ""


def seconds_since_start() -> float:
    """Wall seconds since the start of this process, including imports."""
    import psutil

    # The clock may have been set back, which must not give a negative time.
    return max(0.0, time.time() - psutil.Process().create_time())
