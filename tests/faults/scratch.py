"""A working copy of the repository to run the workflow in, by the command that users type."""

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
"""The rules that a run in a scratch copy ends with."""

PATIENCE_S = 900


class Scratch:
    """A working copy: the sources linked, the results its own.

    Attributes:
        folder: where it is.
        results: of the reduced tier.
        output: what the last command printed, a file.
    """

    def __init__(self, folder: Path, like: Scratch | None = None) -> None:
        """Makes the copy, with the results and the memory of another one if given."""
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
                # Hard links would let a flipped bit through to the original.
                shutil.copytree(like.folder / name, folder / name, symlinks=True)

    def command(self, cores: int = 1, *arguments: str) -> list[str]:
        """``make reproduce`` of the reduced tier, up to the rules of :data:`UNTIL`."""
        make = ["make", "--old-file=.venv/.installed", "reproduce", "TIER=reduced.yaml"]
        return [*make, f"CORES={cores}", f"ARGS={' '.join(['--until', *UNTIL, *arguments])}"]

    def start(self, command: Sequence[str] | None = None) -> subprocess.Popen[bytes]:
        """Starts a command, one ``make reproduce`` if none is given, in a session of its own."""
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
        """Runs a command to its end and gives its status."""
        with ended(self.start(command)) as process:
            return process.wait(timeout=PATIENCE_S)

    @property
    def printed(self) -> str:
        """What the last command printed."""
        return self.output.read_text(encoding="utf-8", errors="replace")

    def errors(self) -> str:
        """The lines of it that say what went wrong, on one line."""
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
        """The rules whose jobs run at the moment, as Snakemake's log of the last command tells."""
        logs = [path for path in self._logs() if path not in self.told_before]
        printed = logs[-1].read_text(encoding="utf-8") if logs else ""
        started = dict(re.findall(r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    jobid: (\d+)$",
                                  printed, re.MULTILINE))  # fmt: skip
        done = set(re.findall(r"^Finished jobid: (\d+) ", printed, re.MULTILINE))
        names = [rule for rule, number in started.items() if number not in done]
        return " + ".join(sorted(names)) or ("between jobs" if started else "starting up")


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Sees to it that a process and all that it started are gone afterwards."""
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process started by :meth:`Scratch.start` and to everything that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def kill_alone(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """SIGKILL to the workflow and not to its jobs, which are returned."""
    below = psutil.Process(process.pid).children(recursive=True)
    jobs = [p for p in below if ".snakemake/scripts" in " ".join(p.cmdline()[:2])]
    for other in [p for p in below if p not in jobs]:
        other.kill()
    process.kill()
    process.wait()
    return jobs


def wait_until(ready: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> None:
    """Waits, looking often: a job may be over in a moment.

    Raises:
        TimeoutError: it did not come.
    """
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.01)
