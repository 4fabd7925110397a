"""What every job of the workflow shares: its log, clear failures, its start-up time."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def job_log(path: str | Path) -> Iterator[None]:
    """Sends standard output and error, warnings and progress to a log file.

    A failure leaves its traceback in the log and one line on the original standard error, then ends
    the process with status 1.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.dup(2)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    # Descriptors, not sys.stdout: compiled libraries write to the former.
    saved = os.dup(1)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        line = f"error: {type(error).__name__}: {error} (log: {path})\n"
        os.write(terminal, line.encode())
        sys.exit(1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(saved, 1)
        os.dup2(terminal, 2)
        os.close(saved)
        os.close(terminal)


def seconds_since_start() -> float:
    """Wall seconds since this process was started, its imports so far included."""
    import psutil

    return time.time() - psutil.Process().create_time()
