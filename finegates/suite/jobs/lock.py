"""Locks a results folder for one run, with a lock of the kernel.

A run holds the folder's lock as long as it or one of its jobs is alive. A killed run leaves nothing
to clean up. A job that outlives its killed run still blocks the next run.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"

HELD = "FINEGATES_LOCK"
"""The environment variable that tells a run's jobs where its lock is."""

_NO_LOCKS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL}


class LockError(RuntimeError):
    """The results folder is locked or not writable. The message says why."""


def check_writable(folder: str | Path) -> None:
    """Raises LockError if the folder exists and is not writable."""
    if Path(folder).exists() and not os.access(folder, os.W_OK | os.X_OK):
        raise LockError(_not_writable(folder, "read-only"))


def _not_writable(folder: str | Path, why: str) -> str:
    return (
        f"cannot write to {folder} ({why}); make it writable, or name another folder under "
        "results in the tier"
    )


def hold(folder: str | Path, *, shared: bool = False) -> None:
    """Locks a results folder until this process and its jobs have ended.

    Args:
        folder: results folder, created if needed.
        shared: allow another run, which must make other files.

    Raises:
        LockError: another run holds the lock, or the folder is not writable.
    """
    place = Path(folder).absolute() / LOCK
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise LockError(_not_writable(folder, str(error.strerror))) from error
    # An exclusive lock shows that there is no other run. It is then shared with the jobs.
    wanted = [fcntl.LOCK_SH] if shared else [fcntl.LOCK_EX, fcntl.LOCK_SH]
    if not all(_locked(descriptor, kind) for kind in wanted):
        os.close(descriptor)
        raise LockError(
            f"another run is at work in {folder}{_holders(place)}; wait for it, or end it. A run "
            "that makes other files may run at the same time: --config lock=shared"
        )
    os.environ[HELD] = str(place)


@contextmanager
def at_work() -> Iterator[None]:
    """Shares the lock of the run that started this job, if there is one.

    Raises:
        LockError: that run has ended, and another one holds the lock.
    """
    place = os.environ.get(HELD)
    if place is None:
        yield
        return
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _locked(descriptor, fcntl.LOCK_SH):
            raise LockError(f"the run that started this job has ended, and another holds {place}")
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print("warning: this file system has no locks; start one run at a time", file=sys.stderr)
    return True


def _holders(place: Path) -> str:
    """The processes on this machine that have the lock file open."""
    import psutil

    found = []
    for process in psutil.process_iter(["name"]):
        try:
            opened = {file.path for file in process.open_files()}
        except psutil.Error:
            continue  # ended meanwhile, or owned by another user
        if str(place) in opened and process.pid != os.getpid():
            found.append(f"{process.pid} ({process.info['name']})")
    return f" (processes {', '.join(found)})" if found else ""
