"""A working copy of the repository in which the users' command runs the workflow."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from support.paths import ROOT

TIER = Path(__file__).with_name("reduced.yaml")

LINKED = (
    "Snakefile", "Makefile", "workflow", "profiles", "finegates", "theory", "environment.yml",
    "constraints.txt", "pyproject.toml",
)  # fmt: skip

UNTIL = ("tabulate_glue", "tabulate_llama_pretraining")
"""The last rules of a run in a scratch copy."""

PATIENCE_S = 900


class Scratch:
    """A working copy: its sources are links, its results are its own.

    Attributes:
        folder: its path.
        results: of the reduced tier.
        output: a file with the output of the last command.
    """

    def __init__(self, folder: Path, like: Scratch | None = None) -> None:
        """Makes the copy, with the results and Snakemake's metadata of another one if given."""
        self.folder = folder
        self.results = folder / "results" / "reduced"
        self.output = folder / "printed.txt"
        self.told_before: set[Path] = set()
        folder.mkdir(parents=True)
        for name in LINKED:
            (folder / name).symlink_to(ROOT / name)
        (folder / ".venv").symlink_to(sys.prefix)
        shutil.copy(TIER, folder)
        if like is not None:
            for name in ("results", ".snakemake"):
                # A flipped bit would reach the original through hard links.
                shutil.copytree(like.folder / name, folder / name, symlinks=True)

    def command(self, cores: int = 1, *arguments: str) -> list[str]:
        """``make reproduce`` of the reduced tier, up to the rules of :data:`UNTIL`."""
        make = ["make", "--old-file=.venv/.installed", "reproduce", "TIER=reduced.yaml"]
        return [*make, f"CORES={cores}", f"ARGS={' '.join(['--until', *UNTIL, *arguments])}"]

    def start(self, command: Sequence[str] | None = None) -> subprocess.Popen[bytes]:
        """Starts a command, by default one ``make reproduce``, in its own session."""
        self.told_before = set(self._logs())
        with self.output.open("wb") as output:
            return subprocess.Popen(
                command or self.command(),
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    def run(self, command: Sequence[str] | None = None) -> int:
        """Runs a command to its end and returns its status."""
        with ended(self.start(command)) as process:
            return process.wait(timeout=PATIENCE_S)

    @property
    def printed(self) -> str:
        """The output of the last command."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def errors(self) -> str:
        """The lines of the output that report errors, joined to one line."""
        found = re.findall(
            r"^(?:error: |WorkflowError(?: in file .*)?:\n|(?=Write-prot|        results/))(.+)$",
            self.printed,
            re.MULTILINE,
        )
        told = [line.strip() for line in found if not line.startswith("At least one job")]
        return " ".join(dict.fromkeys(told)).replace(f"{self.folder}{os.sep}", "")

    def _logs(self) -> list[Path]:
        return sorted((self.folder / ".snakemake" / "log").glob("*.snakemake.log"))

    def at_work(self) -> str:
        """The rules whose jobs are running, from Snakemake's log of the last command."""
        logs = [path for path in self._logs() if path not in self.told_before]
        printed = logs[-1].read_text(encoding="utf-8") if logs else ""
        started = dict(re.findall(r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    jobid: (\d+)$",
                                  printed, re.MULTILINE))  # fmt: skip
        done = set(re.findall(r"^Finished jobid: (\d+) ", printed, re.MULTILINE))
        names = [rule for rule, number in started.items() if number not in done]
        return " + ".join(sorted(names)) or ("between jobs" if started else "starting up")


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Ensures that a process and all of its children have ended afterwards."""
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Sends SIGKILL to a process started by :meth:`Scratch.start` and to all of its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kill_alone(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Sends SIGKILL to the workflow but not to its jobs, which are returned."""
    below = psutil.Process(process.pid).children(recursive=True)
    jobs = [p for p in below if ".snakemake/scripts" in " ".join(p.cmdline()[:2])]
    for other in [p for p in below if p not in jobs]:
        other.kill()
    process.kill()
    process.wait()
    return jobs


def wait_until(ready: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> None:
    """Waits with frequent polling, because a job may end within a moment.

    Raises:
        TimeoutError: the condition never held.
    """
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.01)
