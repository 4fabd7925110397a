"""One run at a time in a folder of results, by a lock that the kernel lets go of.

A run holds the folder's lock for as long as it or one of its jobs is alive. A kill leaves nothing
to clean up, and a job that outlives its killed run still keeps the next run out.
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
    """The folder of results cannot be had; the message says who has it, or why."""


def check_writable(folder: str | Path) -> None:
    """Raises LockError if the folder is there and nothing can be written into it."""
    if Path(folder).exists() and not os.access(folder, os.W_OK | os.X_OK):
        raise LockError(_not_writable(folder, "read-only"))


def _not_writable(folder: str | Path, why: str) -> str:
    return (
        f"cannot write to {folder} ({why}); make it writable, or name another folder under "
        "results in the tier"
    )


def hold(folder: str | Path, *, shared: bool = False) -> None:
    """Takes the lock of a folder of results until this process and its jobs have ended.

    Args:
        folder: made if needed.
        shared: allow another run that makes other files.

    Raises:
        LockError: another run is at work there, or the folder cannot be written to.
    """
    place = Path(folder).absolute() / LOCK
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise LockError(_not_writable(folder, str(error.strerror))) from error
    # Alone for a moment, which shows that nobody else is there; then shared with the jobs.
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
    """Shares the lock of the run that started this job, if one did.

    Raises:
        LockError: that run has ended, and another one has begun.
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
    """The processes of this machine that have the lock file open."""
    import psutil

    found = []
    for process in psutil.process_iter(["name"]):
        try:
            opened = {file.path for file in process.open_files()}
        except psutil.Error:
            continue  # ended meanwhile, or somebody else's
        if str(place) in opened and process.pid != os.getpid():
            found.append(f"{process.pid} ({process.info['name']})")
    return f" (processes {', '.join(found)})" if found else ""
